#include "trainers/noise_layout.h"

#include <algorithm>
#include <vector>

#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "src/tensor/shape.h"

namespace fewstep {
namespace {

using models::EmbeddingNoise;
using models::EmbeddingNoiseConfig;
using models::TimestepTokens;

int64_t ramp_levels(const NoiseLayoutConfig& c) { return c.levels_count > 0 ? c.levels_count : c.segments; }
int64_t group_count(const NoiseLayoutConfig& c) { return c.layout == NoiseLayout::segments ? c.segments - 1 : ramp_levels(c); }

int64_t whole(double x) { return static_cast<int64_t>(std::floor(x)); }

// One sample's row of the plan, before it becomes tensors.
struct Row {
  int64_t n;                                 // inputs
  std::vector<int64_t> group, first;         // [n]
  std::vector<double> time, height;          // [G]
  int64_t end;                               // inputs from here on carry no loss
};

// Height h of a level, and the time there: K levels as the decoder has them, or anything between.
void set_level(Row& row, size_t g, double height, const EmbeddingNoiseConfig& noise) {
  row.height[g] = height;
  row.time[g] = models::time_at(noise, height);
}
double height_of(int64_t k, int64_t K) { return K == 1 ? 1.0 : static_cast<double>(k - 1) / static_cast<double>(K - 1); }

// u: [1 + 2 (S - 1)]: number of parts, cut points, heights. Cut points may coincide: such a part is empty.
void draw_segments(Row& row, const NoiseLayoutConfig& c, const EmbeddingNoiseConfig& noise, const float* u) {
  const int64_t S = c.segments, K = c.levels_count, noisy = 1 + whole(u[0] * static_cast<double>(S - 1));  // M - 1
  std::vector<int64_t> cuts;
  std::vector<double> heights;
  for (int64_t j = 0; j < noisy; ++j) {
    cuts.push_back(whole(u[1 + j] * static_cast<double>(row.n + 1)));  // in [0, N)
    const double h = u[S + j];
    heights.push_back(K > 0 ? height_of(1 + whole(h * static_cast<double>(K)), K) : h);
  }
  std::sort(cuts.begin(), cuts.end());
  std::sort(heights.begin(), heights.end());
  for (size_t g = 0; g < row.time.size(); ++g) set_level(row, g, heights[std::min(g, heights.size() - 1)], noise);
  for (int64_t i = 0; i < row.n; ++i)
    row.group[static_cast<size_t>(i)] = std::upper_bound(cuts.begin(), cuts.end(), i) - cuts.begin() - 1;
}

// u: [4]: accepted tokens a pass, window start or phase, shift of continuous levels, accepted tokens a pass of the start.
void draw_ramps(Row& row, const NoiseLayoutConfig& c, const EmbeddingNoiseConfig& noise, const float* u) {
  const int64_t W = c.window, K = ramp_levels(c);
  const double accepted = std::max(1.0, (0.5 + u[0]) * static_cast<double>(W) / static_cast<double>(K));  // m
  const double at_first = std::pow(accepted, u[3]);
  for (int64_t k = 1; k <= K; ++k) {
    const double between = (static_cast<double>(k) - u[2]) / static_cast<double>(K);
    set_level(row, static_cast<size_t>(k - 1), c.levels_count > 0 ? height_of(k, K) : between, noise);
  }
  const auto level = [&](int64_t slot, int64_t start) {
    const int64_t since_entry = whole(static_cast<double>(W - 1 - slot) / accepted);
    const int64_t passes = whole(std::ceil(static_cast<double>(start) / at_first));
    return std::max(K - std::min(since_entry, passes), int64_t{1});
  };
  const bool one = c.layout == NoiseLayout::window;  // begin: where the first window does, before the image when it is cut
  const int64_t begin = one ? whole(u[1] * static_cast<double>(row.n)) : whole(u[1] * static_cast<double>(W)) - W;
  row.end = one ? std::min(begin + W, row.n) : row.n;
  for (int64_t i = std::max<int64_t>(begin, 0); i < row.end; ++i) {
    const int64_t slot = (i - begin) % W, start = std::max<int64_t>(i - slot, 0);
    row.group[static_cast<size_t>(i)] = level(slot, start) - 1;
    row.first[static_cast<size_t>(i)] = start;
  }
}

// Row r of the main stream has the prompt or input r - 1 as its last one; a row behind a noisy token is noisy too.
void set_rows(NoisePlan& plan, int64_t b, const Row& row, double clean_weight) {
  const bool two = plan.layout == NoiseLayout::two_stream;
  auto height = plan.row_height.accessor<double, 2>(), weight = plan.row_weight.accessor<double, 2>();
  const auto set = [&](int64_t r, int64_t group) {
    height[b][r] = group < 0 ? -1.0 : row.height[static_cast<size_t>(group)];
    weight[b][r] = group < 0 ? clean_weight : 1.0;
  };
  for (int64_t r = 0; r <= row.n; ++r) {
    if (!two && r > row.end)
      height[b][r] = NoisePlan::kUnused, weight[b][r] = 0;
    else
      set(r, two || r == 0 ? -1 : row.group[static_cast<size_t>(r - 1)]);
  }
  if (two)
    for (int64_t i = 0; i < row.n; ++i) set(row.n + 1 + i, row.group[static_cast<size_t>(i)]);
}

int64_t timestep_columns(const NoisePlan& plan, TimestepTokens tokens) {
  if (tokens == TimestepTokens::none) return 0;
  return tokens == TimestepTokens::per_slot ? plan.group.size(1) : plan.time.size(1);
}

// Who sees whom, one block of the [L, L] matrix after the other.
Tensor attention_mask(const NoisePlan& plan, TimestepTokens tokens, int64_t P, at::Device device) {
  const bool two = plan.layout == NoiseLayout::two_stream;
  const int64_t B = plan.group.size(0), n = plan.group.size(1), T = P + n, noisy = two ? T : P, suffix = noisy + n;
  const int64_t G = timestep_columns(plan, tokens), L = suffix + G;
  const auto options = at::TensorOptions().dtype(at::kBool).device(device);
  const Tensor mask = at::zeros({B, L, L}, options);
  const auto block = [&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
    return mask.narrow(1, row, rows).narrow(2, column, columns);
  };
  block(0, T, 0, T).copy_(at::ones({T, T}, options).tril());
  if (two) {
    const Tensor first = plan.first.to(device).unsqueeze(2);  // [B, n, 1]
    block(noisy, n, 0, T).copy_(at::arange(T, first.options()).lt(first + P));
    block(noisy, n, noisy, n).copy_(first.eq(first.transpose(1, 2)) & at::ones({n, n}, options).tril());
  }
  if (G == 0) return mask.unsqueeze(1);
  block(suffix, G, suffix, G).copy_(at::eye(G, options));
  const Tensor own = tokens == TimestepTokens::per_slot
                         ? at::eye(n, options).unsqueeze(0)
                         : plan.group.to(device).unsqueeze(2).eq(at::arange(G, options.dtype(at::kLong)));
  block(noisy, n, suffix, G).copy_(own & plan.noised.to(device).unsqueeze(2));
  return mask.unsqueeze(1);
}

}  // namespace

void describe_fields(config::Visitor& v, NoiseLayoutConfig& c) {
  static constexpr config::Choice kLayouts[] = {{"segments", 0}, {"window", 1}, {"two_stream", 2}};
  v.field("layout", c.layout, "where noise is: rising over the image, in one window, in a second stream of windows", kLayouts);
  v.field("segments", c.segments, "most parts of equal noise in an image, the clean one included", config::Range{2.0});
  v.field("window", c.window, "noisy tokens of a window (layouts window and two_stream)", config::kAtLeastOne);
  v.field("levels_count", c.levels_count, "noise levels, those of a decoder of as many steps; 0: any time", config::kNonNegative);
  v.field("clean_weight", c.clean_weight, "weight of loss rows that see clean tokens only, against 1 of the others",
          config::kNonNegative);
}

NoisePlan draw_noise_plan(const NoiseLayoutConfig& c, const EmbeddingNoiseConfig& noise, const Tensor& structural,
                          const NoiseKey& key) {
  const int64_t B = key.ids.size(0), N = structural.size(0), n = N - 1, G = group_count(c);
  const bool two = c.layout == NoiseLayout::two_stream;
  const auto integers = at::TensorOptions().dtype(at::kLong), doubles = at::TensorOptions().dtype(at::kDouble);
  NoisePlan plan{.layout = c.layout, .group = at::empty({B, n}, integers), .time = at::empty({B, G}, doubles),
                 .height = at::empty({B, G}, doubles), .noised = {}, .first = at::empty({B, n}, integers),
                 .row_height = at::empty({B, two ? N + n : N}, doubles), .row_weight = at::empty({B, two ? N + n : N}, doubles)};
  const Tensor uniforms = uniform_by_id(key.ids, std::max<int64_t>(2 * c.segments - 1, 4), key.seed, Stream::timestep, key.step);
  const std::vector<double> zeros(static_cast<size_t>(G));
  Row row{.n = n, .group = {}, .first = {}, .time = zeros, .height = zeros, .end = n};
  for (int64_t b = 0; b < B; ++b) {
    row.group.assign(static_cast<size_t>(n), -1);
    row.first.assign(static_cast<size_t>(n), 0);
    const float* u = uniforms.const_data_ptr<float>() + b * uniforms.size(1);
    if (c.layout == NoiseLayout::segments)
      draw_segments(row, c, noise, u);
    else
      draw_ramps(row, c, noise, u);
    std::copy(row.group.begin(), row.group.end(), plan.group.mutable_data_ptr<int64_t>() + b * n);
    std::copy(row.first.begin(), row.first.end(), plan.first.mutable_data_ptr<int64_t>() + b * n);
    std::copy(row.time.begin(), row.time.end(), plan.time.mutable_data_ptr<double>() + b * G);
    std::copy(row.height.begin(), row.height.end(), plan.height.mutable_data_ptr<double>() + b * G);
    set_rows(plan, b, row, c.clean_weight);
  }
  const Tensor time = plan.time.gather(1, plan.group.clamp_min(0));  // [B, n]
  plan.noised = plan.group.ge(0) & time.gt(0) & structural.narrow(0, 0, n).logical_not();
  return plan;
}

double loss_rows(const NoiseLayoutConfig& c, int64_t image_length) {
  const int64_t N = image_length, n = N - 1;
  if (c.layout == NoiseLayout::segments) return static_cast<double>(N);
  if (c.layout == NoiseLayout::two_stream) return static_cast<double>(n) + c.clean_weight * static_cast<double>(N);
  double sum = 0;  // s + 1 clean rows and the window's, for s ~ U{0 ... n - 1}
  for (int64_t s = 0; s < n; ++s)
    sum += c.clean_weight * static_cast<double>(s + 1) + static_cast<double>(std::min(c.window, n - s));
  return sum / static_cast<double>(n);
}

NoisyInput arrange(const NoisePlan& plan, const EmbeddingNoise& noise, const Tensor& prompts, const Tensor& images,
                   const Tensor& eps) {
  const int64_t B = plan.group.size(0), n = plan.group.size(1), P = prompts.size(1), G = plan.time.size(1), d = prompts.size(2);
  expect_shape(images, {B, n, d}, "image embeddings");
  expect_shape(eps, {B, n, d}, "noise");
  const bool two = plan.layout == NoiseLayout::two_stream;
  const TimestepTokens tokens = noise.config().timestep_tokens;
  const at::Device device = images.device();
  const Tensor times = plan.time.to(device, images.scalar_type());                            // [B, G]
  const Tensor t = times.gather(1, plan.group.clamp_min(0).to(device));                       // [B, n]
  const Tensor z_t = noise.add_noise(noise.normalise(images), t, eps.to(images.options()));
  // Clean inputs are the table's rows to the bit, not what is left of them after the way to z and back.
  const Tensor noisy = at::where(plan.noised.to(device).unsqueeze(2), noise.denormalise(z_t), images);

  const auto options = at::TensorOptions().dtype(at::kLong).device(device);
  const Tensor slots = at::arange(P, P + n, options);
  std::vector<Tensor> embeds = {prompts, noisy}, positions = {at::arange(P + n, options)};
  if (two) embeds = {prompts, images, noisy}, positions.push_back(slots);
  if (tokens == TimestepTokens::shared_suffix)
    embeds.push_back(noise.timestep_embedding(times)), positions.push_back(at::zeros({G}, options));
  if (tokens == TimestepTokens::per_slot) embeds.push_back(noise.timestep_embedding(t)), positions.push_back(slots);

  NoisyInput out{.embeds = at::cat(embeds, 1), .positions = at::cat(positions), .mask = {},
                 .rows = at::arange(P - 1, P + n, options), .targets = at::arange(n + 1, options)};
  if (two || tokens != TimestepTokens::none) out.mask = attention_mask(plan, tokens, P, device);
  if (two) out.rows = at::cat({out.rows, slots + n}), out.targets = at::cat({out.targets, at::arange(1, n + 1, options)});
  return out;
}

LossByLevel by_level(const NoisePlan& plan, const Tensor& loss) {
  const NoGrad no_grad;
  constexpr auto kLevels = static_cast<int64_t>(kLevelNames.size());
  const Tensor& h = plan.row_height;
  // 0: clean, 1 ... 4: quarters; a fifth place takes the rows without loss.
  const Tensor quarter = (h * 4).floor().clamp(0, 3) + 1;
  const Tensor level = at::where(h.eq(NoisePlan::kUnused), at::scalar_tensor(static_cast<double>(kLevels), at::kDouble),
                                 at::where(h.lt(0), at::zeros({}, at::kDouble), quarter)).to(at::kLong).flatten();
  LossByLevel out;
  const Tensor counts = level.bincount({}, kLevels + 1);
  for (int64_t i = 0; i < kLevels; ++i) out.counts[static_cast<size_t>(i)] = static_cast<double>(counts[i].item<int64_t>());
  const Tensor sums = at::zeros({kLevels + 1}, loss.options().dtype(at::kDouble));
  sums.index_add_(0, level.to(loss.device()), loss.detach().to(at::kDouble).flatten());
  out.sums = sums.narrow(0, 0, kLevels);
  return out;
}

}  // namespace fewstep
