#include "src/models/unet2d.h"

#include <cmath>

#include "src/base/error.h"
#include "src/nn/fused_norm.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::models {
namespace {

nn::Conv2dOptions same_size(int64_t kernel) { return {.kernel = kernel, .padding = (kernel - 1) / 2}; }

UnetStageShape down_shape(const UNet2DConfig& c, int64_t level) {
  const auto width = [&](int64_t l) { return c.block_out_channels[static_cast<size_t>(l)]; };
  UnetStageShape s{.inputs = {}, .channels = width(level), .heads = c.heads(level), .depth = c.depth(level)};
  for (int64_t i = 0; i < c.layers(level); ++i) s.inputs.push_back(i > 0 || level == 0 ? width(level) : width(level - 1));
  s.attention = c.down_block_types[static_cast<size_t>(level)] == "CrossAttnDownBlock2D";
  s.resample = level + 1 < c.levels() ? UnetResample::down : UnetResample::none;
  return s;
}

// Up levels count from the coarsest; the skips of a level are its layers' outputs and what came down into it.
UnetStageShape up_shape(const UNet2DConfig& c, int64_t index) {
  const int64_t level = c.levels() - 1 - index, layers = c.layers(level);
  const auto width = [&](int64_t l) { return c.block_out_channels[static_cast<size_t>(l)]; };
  UnetStageShape s{.inputs = {}, .channels = width(level), .heads = c.heads(level), .depth = c.depth(level)};
  for (int64_t i = 0; i <= layers; ++i) {
    const int64_t from_below = i == 0 ? width(std::min(level + 1, c.levels() - 1)) : width(level);
    const int64_t skip = i == layers ? width(std::max<int64_t>(level - 1, 0)) : width(level);
    s.inputs.push_back(from_below + skip);
  }
  s.attention = c.up_block_types[static_cast<size_t>(index)] == "CrossAttnUpBlock2D";
  s.resample = level > 0 ? UnetResample::up : UnetResample::none;
  return s;
}

}  // namespace

Tensor sinusoids(const Tensor& values, int64_t dim, bool flip_sin_to_cos, int64_t freq_shift) {
  const int64_t half = dim / 2;
  const Tensor exponent = at::arange(half, values.options().dtype(at::kFloat)) * -std::log(10000.0) / static_cast<double>(half - freq_shift);
  const Tensor angle = values.to(at::kFloat).unsqueeze(-1) * exponent.exp();
  const Tensor both = flip_sin_to_cos ? at::cat({angle.cos(), angle.sin()}, -1) : at::cat({angle.sin(), angle.cos()}, -1);
  return dim % 2 == 0 ? both : at::constant_pad_nd(both, {0, 1});
}

UNet2DConditionModel::TimestepEmbedding::TimestepEmbedding(int64_t in_features, int64_t dim) : linear_1(in_features, dim), linear_2(dim, dim) {
  child("linear_1", linear_1);
  child("linear_2", linear_2);
}

Tensor UNet2DConditionModel::TimestepEmbedding::operator()(const Tensor& x) const {
  return linear_2(at::silu(linear_1(x.to(linear_1.weight.scalar_type()))));
}

UNet2DConditionModel::UNet2DConditionModel(const UNet2DConfig& config)
    : config_((config.validate("UNet2DConditionModel"), config)),
      conv_in_(config.in_channels, config.block_out_channels.front(), same_size(config.conv_in_kernel)),
      time_embedding_(config.block_out_channels.front(), config.time_embed_dim()),
      conv_norm_out_(config.norm_num_groups, config.block_out_channels.front(), config.norm_eps),
      conv_out_(config.block_out_channels.front(), config.out_channels, same_size(config.conv_out_kernel)) {
  child("conv_in", conv_in_);
  child("time_embedding", time_embedding_);
  if (config_.has_additions())
    child("add_embedding", add_embedding_.emplace(config_.projection_class_embeddings_input_dim, config_.time_embed_dim()));
  for (int64_t i = 0; i < config_.levels(); ++i) {
    down_blocks_.add(down_shape(config_, i), config_);
    up_blocks_.add(up_shape(config_, i), config_);
  }
  child("down_blocks", down_blocks_);
  child("up_blocks", up_blocks_);
  if (!config_.mid_block_type.empty()) child("mid_block", *(mid_block_ = std::make_unique<UnetMidBlock>(config_)));
  child("conv_norm_out", conv_norm_out_);
  child("conv_out", conv_out_);
  visit([](const std::string&, nn::Module& module) {
    if (auto* linear = dynamic_cast<nn::Linear*>(&module)) linear->use_onednn(true);
  });
}

void UNet2DConditionModel::reset(at::Generator&) {
  const NoGrad no_grad;
  conv_out_.weight.zero_();
  conv_out_.bias.zero_();
}

void UNet2DConditionModel::check(const Tensor& sample, const UNetConditions& given) const {
  expect_shape(sample, {-1, config_.in_channels, -1, -1}, "UNet: sample");
  const int64_t B = sample.size(0);
  if (config_.has_cross_attention())
    expect_shape(given.context, {B, -1, config_.cross_attention_dim}, "UNet: context");
  else if (given.context.defined())
    fail("UNet: a context was given, but no block of this network has cross attention");
  if (config_.has_additions()) {
    if (given.pooled.defined()) expect_shape(given.pooled, {B, -1}, "UNet: pooled");
    if (given.numbers.defined()) expect_shape(given.numbers, {B, -1}, "UNet: numbers");
    if (given.number_mask.defined()) expect_shape(given.number_mask, {B, given.numbers.defined() ? given.numbers.size(1) : 0}, "UNet: number_mask");
  } else if (given.pooled.defined() || given.numbers.defined()) {
    fail("UNet: pooled text or numbers were given, but this network has no addition_embed_type");
  }
}

Tensor UNet2DConditionModel::additions(const UNetConditions& given) const {
  std::vector<Tensor> parts;
  int64_t width = 0;
  const auto add = [&](const Tensor& t) { parts.push_back(t.to(add_embedding_->linear_1.weight.scalar_type())), width += t.size(1); };
  if (given.pooled.defined()) add(given.pooled);
  if (given.numbers.defined()) {
    const Tensor waves = sinusoids(given.numbers, config_.addition_time_embed_dim, config_.flip_sin_to_cos, config_.freq_shift);  // [B, n, dim]
    add((given.number_mask.defined() ? waves * given.number_mask.unsqueeze(-1) : waves).flatten(1));
  }
  if (width != config_.projection_class_embeddings_input_dim)
    fail("UNet: {} numbers of {} each and a pooled embedding of {} make {} values, but projection_class_embeddings_input_dim is {}",
         given.numbers.defined() ? given.numbers.size(1) : 0, config_.addition_time_embed_dim, given.pooled.defined() ? given.pooled.size(1) : 0, width,
         config_.projection_class_embeddings_input_dim);
  return (*add_embedding_)(parts.size() == 1 ? parts.front() : at::cat(parts, 1));
}

Tensor UNet2DConditionModel::embedding(const Tensor& timesteps, int64_t batch, const UNetConditions& given) const {
  const Tensor t = timesteps.dim() == 0 ? timesteps.unsqueeze(0) : timesteps;
  if (t.dim() != 1 || (t.size(0) != batch && t.size(0) != 1)) fail("UNet: {} timesteps for {} samples", t.numel(), batch);
  const Tensor waves = sinusoids(t.expand({batch}), config_.block_out_channels.front(), config_.flip_sin_to_cos, config_.freq_shift);
  const Tensor time = nn::tap("time_emb", time_embedding_(waves));
  return config_.has_additions() ? time + nn::tap("add_emb", additions(given)) : time;
}

Tensor UNet2DConditionModel::operator()(const Tensor& sample, const Tensor& timesteps, const UNetConditions& conditions) const {
  check(sample, conditions);
  UnetPass pass{.emb = at::silu(embedding(timesteps, sample.size(0), conditions)), .context = {}, .recompute = recompute_ && at::GradMode::is_enabled()};
  if (conditions.context.defined()) pass.context = conditions.context.to(conv_in_.weight.scalar_type());
  const Tensor input = sample.to(conv_in_.weight.scalar_type());
  Tensor x = conv_in_(config_.center_input_sample ? 2 * input - 1 : input);
  std::vector<Tensor> skips = {x};
  for (const auto& stage : down_blocks_) x = stage->down(x, pass, &skips);
  if (mid_block_) x = nn::tap("mid_block", (*mid_block_)(x, pass));
  for (const auto& stage : up_blocks_) x = stage->up(x, pass, &skips);
  return conv_out_(nn::group_norm_silu(conv_norm_out_, x));
}

double UNet2DConditionModel::forward_flops(int64_t height, int64_t width, int64_t context_length) const {
  const auto each = [](const auto& layer) { return 2.0 * static_cast<double>(layer.weight.numel()); };
  std::vector<int64_t> pixels;  // of each level
  for (int64_t i = 0; i < config_.levels(); ++i, height = (height + 1) / 2, width = (width + 1) / 2) pixels.push_back(height * width);
  double sum = (each(conv_in_) + each(conv_out_)) * static_cast<double>(pixels.front()) + each(time_embedding_.linear_1) + each(time_embedding_.linear_2);
  if (add_embedding_) sum += each(add_embedding_->linear_1) + each(add_embedding_->linear_2);
  if (mid_block_) sum += mid_block_->flops(pixels.back(), context_length);
  for (size_t i = 0; i < pixels.size(); ++i) {
    const size_t mirrored = pixels.size() - 1 - i;
    sum += down_blocks_[i].flops(pixels[i], context_length) + up_blocks_[mirrored].flops(pixels[i], context_length);
    if (i + 1 < pixels.size()) sum += down_blocks_[i].resample_flops(pixels[i + 1]);
    if (i > 0) sum += up_blocks_[mirrored].resample_flops(pixels[i - 1]);
  }
  return sum;
}

}  // namespace fewstep::models
