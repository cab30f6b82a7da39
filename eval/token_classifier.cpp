#include "eval/token_classifier.h"

#include <ATen/core/grad_mode.h>

#include <cmath>

#include "src/base/error.h"
#include "src/nn/layers.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/optim.h"
#include "src/tensor/rng.h"

namespace fewstep::eval {
namespace {

constexpr int64_t kDims = 16, kChannels = 32;
constexpr int64_t kSplit = 11, kBatch = 12;  // steps of Stream::eval: which captions are held out, which are in a batch

class GridClassifier : public nn::Module {
 public:
  explicit GridClassifier(const TokenGrid& grid)
      : grid_(grid),
        embed_(grid.codes, kDims),
        first_(kDims, kChannels),
        second_(kChannels, kChannels),
        head_(kChannels, 1) {
    child("embed", embed_), child("first", first_), child("second", second_), child("head", head_);
  }
  // Random, but for the codes' vectors, which begin as the leading principal components of the given ones: from a few
  // hundred grids alone it would take long to learn which of K codes are alike.
  void start(uint64_t seed) {
    initialise(seed);
    if (!grid_.table.defined()) return;
    const NoGrad no_grad;
    const Tensor x = grid_.table.to(at::kCPU, at::kDouble), centred = x - x.mean(0);
    const int64_t count = std::min({kDims, x.size(0), x.size(1)});
    const Tensor axes =
        std::get<2>(at::linalg_svd(centred, /*full_matrices=*/false)).narrow(0, 0, count);  // [count, d]
    const Tensor components = at::mm(centred, axes.t());
    const Tensor scale = components.square().mean().sqrt().clamp_min(1e-12);  // one for all: leading ones count more
    embed_.weight.narrow(1, 0, count).copy_((components / scale).to(at::kFloat));
  }
  Tensor operator()(const Tensor& tokens) const {  // int64 [B, N] -> logits [B]
    Tensor x = embed_(tokens).view({-1, grid_.rows, grid_.columns, kDims}).permute({0, 3, 1, 2}).contiguous();
    x = at::silu(second_(at::silu(first_(x))));  // [B, C, H, W]
    return head_(x.mean({2, 3})).squeeze(1);
  }

 private:
  const TokenGrid grid_;
  nn::Embedding embed_;
  nn::Conv2d first_, second_;
  nn::Linear head_;
};

// A batch holds both grids of each of its captions: the classes are balanced, and what a caption says tells nothing.
void train(GridClassifier& model, const Tensor& a, const Tensor& b, const TokenClassifierOptions& options) {
  const OptimizerConfig optimizer{.lr = 1e-2, .beta2 = 0.99, .weight_decay = 0.1, .warmup_steps = 10};
  model.start(options.seed);
  model.requires_grad(true);
  AdamW adamw(model.parameters(), optimizer);
  const at::AutoGradMode with_gradients(true);
  const int64_t pairs = std::min(options.pairs, a.size(0));
  const Tensor target = at::cat({at::ones({pairs}), at::zeros({pairs})});
  for (int64_t step = 0; step < options.steps; ++step) {
    at::Generator generator = generator_for(options.seed, Stream::eval, kBatch, step);
    const Tensor rows = at::randperm(a.size(0), generator, at::kLong).narrow(0, 0, pairs);
    const Tensor logits = model(at::cat({a.index_select(0, rows), b.index_select(0, rows)}));
    adamw.zero_grad();
    at::binary_cross_entropy_with_logits(logits, target).backward();
    adamw.step(learning_rate(optimizer, step, options.steps), adamw.grad_norm());
  }
}

std::vector<double> scores(const GridClassifier& model, const Tensor& tokens) {
  const NoGrad no_grad;
  std::vector<double> out;
  for (int64_t i = 0; i < tokens.size(0); i += 250) {
    const Tensor s = model(tokens.slice(0, i, std::min<int64_t>(i + 250, tokens.size(0)))).to(at::kDouble).contiguous();
    out.insert(out.end(), s.const_data_ptr<double>(), s.const_data_ptr<double>() + s.numel());
  }
  return out;
}

}  // namespace

Value token_auc(const Tensor& a, const Tensor& b, const TokenGrid& grid, const TokenClassifierOptions& options) {
  const int64_t N = a.size(0);
  FEW_CHECK(a.sizes() == b.sizes() && a.size(1) == grid.rows * grid.columns,
            "token_auc: grids {} and {}, expected [N, {}]", c10::str(a.sizes()), c10::str(b.sizes()),
            grid.rows * grid.columns);
  if (N < 8) fail<ConfigError>("token_auc: {} grids a set are too few to learn from and to judge on", N);
  at::Generator generator = generator_for(options.seed, Stream::eval, kSplit);
  const Tensor order = at::randperm(N, generator, at::kLong);
  const Tensor seen = order.slice(0, 0, N / 2), held_out = order.slice(0, N / 2);
  GridClassifier model(grid);
  train(model, a.index_select(0, seen), b.index_select(0, seen), options);
  return paired_auc(scores(model, a.index_select(0, held_out)), scores(model, b.index_select(0, held_out)));
}

Value paired_auc(const std::vector<double>& positives, const std::vector<double>& negatives) {
  const size_t n = positives.size();
  FEW_CHECK(n > 0 && negatives.size() == n, "paired_auc: {} positives, {} negatives", n, negatives.size());
  // Placements: the share of negatives below positive i, and of positives above negative i.
  std::vector<double> placed(n, 0.0), other(n, 0.0);
  for (size_t i = 0; i < n; ++i)
    for (size_t j = 0; j < n; ++j) {
      const double wins = positives[i] > negatives[j] ? 1.0 : positives[i] == negatives[j] ? 0.5 : 0.0;
      placed[i] += wins / static_cast<double>(n), other[j] += wins / static_cast<double>(n);
    }
  double auc = 0, squares = 0;
  for (double v : placed) auc += v / static_cast<double>(n);
  for (size_t i = 0; i < n; ++i) squares += std::pow(placed[i] + other[i] - 2 * auc, 2);
  Value value{.value = auc, .n = static_cast<int64_t>(2 * n)};
  if (n > 1) value.ci95 = 1.96 * std::sqrt(squares / static_cast<double>(n - 1) / static_cast<double>(n));
  return value;
}

}  // namespace fewstep::eval
