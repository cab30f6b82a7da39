#include "trainers/codebook.h"

#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "src/tensor/shape.h"

namespace fewstep {

void describe(config::Visitor& v, CodebookConfig& c) {
  v.field("decay", c.decay, "of the moving counts and sums of each code", {0, 0.99999});
  v.field("dead_below", c.dead_below, "a code is dead below this share of the uniform count", config::kUnit);
  v.field("revive_until", c.revive_until, "share of the steps during which dead codes become random encoder outputs", config::kUnit);
}

MovingCodebook::MovingCodebook(Tensor codes, const CodebookConfig& config, dist::World& world)
    : codes_(std::move(codes)), counts_(at::zeros({codes_.size(0)}, codes_.options())), sums_(at::zeros_like(codes_)),
      config_(config), world_(world) {}

bool MovingCodebook::empty() const { return counts_.sum().item<double>() == 0; }

Tensor MovingCodebook::candidates(const Tensor& latents, uint64_t seed, int64_t step) const {
  const auto [B, N, D] = dims<3>(latents);
  const int64_t K = codes_.size(0), W = world_.size();
  // A cell of the global batch for each code. Its image p is the (p / W)-th of rank p % W (as the loader deals them): the
  // owner contributes it, the others zeros.
  const Tensor u = uniform_by_id(at::arange(K), 1, seed, Stream::codebook, step).view(-1).to(latents.device(), at::kDouble);
  const Tensor cell = (u * static_cast<double>(B * W * N)).to(at::kLong).clamp_max(B * W * N - 1);
  const Tensor image = cell.div(N, "floor");
  const Tensor mine = image.remainder(W).eq(world_.rank());
  const Tensor row = image.div(W, "floor") * N + cell.remainder(N);
  Tensor out = latents.reshape({B * N, D}).index_select(0, row) * mine.to(latents.scalar_type()).unsqueeze(1);
  world_.all_reduce_sum(out);
  return out;
}

void MovingCodebook::update(const Tensor& latents, const Tensor& indices, bool revive, uint64_t seed, int64_t step) {
  const NoGrad no_grad;
  const bool first = empty();
  const int64_t K = codes_.size(0);
  Tensor counts = at::bincount(indices.flatten(), {}, K).to(counts_.scalar_type());
  Tensor sums = at::zeros_like(sums_).index_add_(0, indices.flatten(), latents.flatten(0, 1));
  world_.all_reduce_sum(counts);
  world_.all_reduce_sum(sums);
  counts_.mul_(config_.decay).add_(counts, 1 - config_.decay);
  sums_.mul_(config_.decay).add_(sums, 1 - config_.decay);
  const double uniform = static_cast<double>(indices.numel() * world_.size()) / static_cast<double>(K);
  revived_ = 0;
  if (revive || first) {
    const Tensor dead = first ? at::ones_like(counts_, at::kBool) : counts_.lt(config_.dead_below * uniform);
    revived_ = dead.sum().item<int64_t>();
    if (revived_ > 0) {
      // Revived with a third of the uniform count: enough to survive until it is used or not.
      const double fresh = uniform * (first ? 1.0 : 0.3);
      counts_.masked_fill_(dead, fresh);
      sums_.copy_(at::where(dead.unsqueeze(1), candidates(latents, seed, step) * fresh, sums_));
    }
  }
  codes_.copy_(sums_ / counts_.clamp_min(1e-5).unsqueeze(1));
}

double MovingCodebook::perplexity() const {
  const Tensor p = counts_.to(at::kDouble) / counts_.sum().to(at::kDouble).clamp_min(1e-30);
  return at::exp(-at::xlogy(p, p).sum()).item<double>();
}

TensorMap MovingCodebook::state() const { return {{"codes", codes_.detach()}, {"counts", counts_}, {"sums", sums_}}; }

void MovingCodebook::load_state(const TensorMap& tensors) {
  const NoGrad no_grad;
  const auto load = [&](const char* name, Tensor& into) {
    const auto found = tensors.find(name);
    if (found == tensors.end()) fail<DataError>("the checkpoint's codebook.safetensors has no '{}'", name);
    if (found->second.sizes() != into.sizes())
      fail<DataError>("the checkpoint's codebook '{}' has {} values, the model has {}", name, found->second.numel(), into.numel());
    into.copy_(found->second);
  };
  load("codes", codes_);
  load("counts", counts_);
  load("sums", sums_);
}

}  // namespace fewstep
