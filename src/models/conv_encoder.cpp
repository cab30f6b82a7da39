#include "src/models/conv_encoder.h"

#include <fmt/ranges.h>

#include "src/models/json_fields.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::models {
namespace {

// Side of the last stage's map, with padding kernel / 2.
int64_t last_side(const ConvEncoderConfig& c) {
  int64_t side = c.image_size;
  for (size_t i = 0; i < c.channels.size(); ++i) side = (side + 2 * (c.kernels[i] / 2) - c.kernels[i]) / c.strides[i] + 1;
  return side;
}

int64_t pooled_dim(const ConvEncoderConfig& c) {
  int64_t sum = 0;
  for (const int64_t stage : c.feature_stages) sum += c.channels[static_cast<size_t>(stage)];
  return sum;
}

}  // namespace

int64_t ConvEncoderConfig::feature_dim() const { return pooled_dim(*this) + embedding_dim; }

ConvEncoderConfig ConvEncoderConfig::from_json(const Json& json, std::string_view where) {
  const JsonFields fields(json, where);
  ConvEncoderConfig c;
  fields.get("in_channels", c.in_channels);
  fields.get("image_size", c.image_size);
  fields.get("channels", c.channels);
  fields.get("kernels", c.kernels);
  fields.get("strides", c.strides);
  fields.get("blocks", c.blocks);
  fields.get("norm_groups", c.norm_groups);
  fields.get("feature_stages", c.feature_stages);
  fields.get("embedding_dim", c.embedding_dim);
  fields.get("embedding_silu", c.embedding_silu);
  fields.get("classes", c.classes);
  fields.get("auxiliary", c.auxiliary);
  fields.get("auxiliary_reads_embedding", c.auxiliary_reads_embedding);
  c.validate(where);
  return c;
}

Json ConvEncoderConfig::to_json() const {
  Json json;
  json["_class_name"] = "ConvEncoder";
  json["in_channels"] = in_channels;
  json["image_size"] = image_size;
  json["channels"] = channels;
  json["kernels"] = kernels;
  json["strides"] = strides;
  json["blocks"] = blocks;
  json["norm_groups"] = norm_groups;
  json["feature_stages"] = feature_stages;
  json["embedding_dim"] = embedding_dim;
  json["embedding_silu"] = embedding_silu;
  json["classes"] = classes;
  json["auxiliary"] = auxiliary;
  json["auxiliary_reads_embedding"] = auxiliary_reads_embedding;
  return json;
}

void ConvEncoderConfig::validate(std::string_view where) const {
  const size_t n = channels.size();
  if (n == 0 || kernels.size() != n || strides.size() != n || blocks.size() != n)
    fail<ConfigError>("{}: channels, kernels, strides and blocks need one entry a stage, have {}, {}, {} and {}", where, n,
                      kernels.size(), strides.size(), blocks.size());
  for (size_t i = 0; i < n; ++i) {
    if (channels[i] < 1 || strides[i] < 1 || blocks[i] < 1 || kernels[i] < 1 || kernels[i] % 2 == 0)
      fail<ConfigError>("{}: stage {}: channels {}, kernel {} (odd), stride {} and blocks {} must be positive", where, i,
                        channels[i], kernels[i], strides[i], blocks[i]);
    if (norm_groups < 1 || channels[i] % norm_groups != 0)
      fail<ConfigError>("{}: stage {}: channels {} is not a multiple of norm_groups {}", where, i, channels[i], norm_groups);
  }
  for (const int64_t stage : feature_stages)
    if (stage < 0 || stage >= static_cast<int64_t>(n)) fail<ConfigError>("{}: feature stage {} is not in [0, {})", where, stage, n);
  if (in_channels < 1 || image_size < 1 || embedding_dim < 1 || classes < 0 || last_side(*this) < 1)
    fail<ConfigError>("{}: in_channels {}, image_size {}, embedding_dim {}, classes {}: not an encoder", where, in_channels,
                      image_size, embedding_dim, classes);
  if (feature_dim() > 256)  // a covariance of more needs more images than the small protocols have
    fail<ConfigError>("{}: {} features (stages {} + embedding {}), at most 256 are allowed", where, feature_dim(),
                      fmt::join(feature_stages, ", "), embedding_dim);
}

void describe(config::Visitor& v, ConvEncoderConfig& c) {
  v.field("channels", c.channels, "width of each stage", config::kAtLeastOne);
  v.field("kernels", c.kernels, "kernel of each stage's first convolution (odd)", config::kAtLeastOne);
  v.field("strides", c.strides, "stride of each stage's first convolution", config::kAtLeastOne);
  v.field("blocks", c.blocks, "convolution - GroupNorm - SiLU blocks in each stage", config::kAtLeastOne);
  v.field("norm_groups", c.norm_groups, "groups of every GroupNorm", config::kAtLeastOne);
  v.field("feature_stages", c.feature_stages, "stages whose spatial means are features", config::kNonNegative);
  v.field("embedding_dim", c.embedding_dim, "size of the linear map of the last stage", config::kAtLeastOne);
  v.field("embedding_silu", c.embedding_silu, "SiLU on the embedding");
  v.field("auxiliary_reads_embedding", c.auxiliary_reads_embedding, "corruption heads read the embedding beside the pooled stages");
  const size_t n = c.channels.size();
  v.check(n > 0 && c.kernels.size() == n && c.strides.size() == n && c.blocks.size() == n, "channels",
          "channels, kernels, strides and blocks need one entry a stage");
}

ConvEncoder::Block::Block(int64_t in_channels, int64_t out_channels, int64_t kernel, int64_t stride, int64_t groups)
    : conv(in_channels, out_channels, nn::Conv2dOptions{.kernel = kernel, .stride = stride, .padding = kernel / 2}),
      norm(groups, out_channels) {
  child("conv", conv);
  child("norm", norm);
}

ConvEncoder::Stage::Stage(int64_t in_channels, const ConvEncoderConfig& c, size_t index) {
  const int64_t width = c.channels[index];
  blocks.add(in_channels, width, c.kernels[index], c.strides[index], c.norm_groups);
  for (int64_t i = 1; i < c.blocks[index]; ++i) blocks.add(width, width, 3, 1, c.norm_groups);
  child("blocks", blocks);
}

ConvEncoder::ConvEncoder(const ConvEncoderConfig& c)
    : config_((c.validate("ConvEncoder"), c)), embedding_(c.channels.back() * last_side(c) * last_side(c), c.embedding_dim) {
  for (size_t i = 0; i < c.channels.size(); ++i) stages_.add(i == 0 ? c.in_channels : c.channels[i - 1], c, i);
  child("stages", stages_);
  child("embedding", embedding_);
  if (c.classes > 0) child("class_head", *(class_head_ = std::make_unique<nn::Linear>(c.embedding_dim, c.classes)));
  if (!c.auxiliary.empty()) {
    const int64_t width = pooled_dim(c) + (c.auxiliary_reads_embedding ? c.embedding_dim : 0);
    child("auxiliary_head", *(auxiliary_head_ = std::make_unique<nn::Linear>(width, static_cast<int64_t>(c.auxiliary.size()))));
  }
  buffer("feature_shift", feature_shift_, {c.feature_dim()});
  buffer("feature_scale", feature_scale_, {c.feature_dim()});
}

void ConvEncoder::reset(at::Generator&) {
  feature_shift_.zero_();
  feature_scale_.fill_(1.0);
}

std::vector<Tensor> ConvEncoder::stages(const Tensor& images) const {
  expect_shape(images, {-1, config_.in_channels, config_.image_size, config_.image_size}, "images");
  std::vector<Tensor> maps;
  Tensor x = images;
  for (const auto& stage : stages_) {
    for (const auto& block : stage->blocks) x = at::silu(block->norm(block->conv(x)));
    maps.push_back(x);
  }
  return maps;
}

ConvEncoded ConvEncoder::operator()(const Tensor& images) const {
  ConvEncoded out;
  out.stages = stages(images);
  out.embedding = embedding_(out.stages.back().flatten(1));
  if (config_.embedding_silu) out.embedding = at::silu(out.embedding);
  std::vector<Tensor> parts;
  for (const int64_t stage : config_.feature_stages) parts.push_back(out.stages[static_cast<size_t>(stage)].mean({2, 3}));
  parts.push_back(out.embedding);
  out.raw = at::cat(parts, 1);
  if (class_head_) out.logits = (*class_head_)(out.embedding);
  if (auxiliary_head_)
    out.auxiliary = (*auxiliary_head_)(config_.auxiliary_reads_embedding ? out.raw : out.raw.narrow(1, 0, pooled_dim(config_)));
  return out;
}

Tensor ConvEncoder::features(const Tensor& images) const { return ((*this)(images).raw - feature_shift_) * feature_scale_; }

Tensor ConvEncoder::logits(const Tensor& images) const {
  FEW_CHECK(class_head_ != nullptr, "this ConvEncoder has no class head");
  return (*this)(images).logits;
}

void ConvEncoder::calibrate(const Tensor& raw) {
  const NoGrad no_grad;
  const int64_t total = config_.feature_dim();
  expect_shape(raw, {-1, total}, "features");
  const int64_t depths = static_cast<int64_t>(config_.feature_stages.size()) + 1;
  std::vector<double> weights;  // total / depths of variance for each depth
  const auto share = [&](int64_t width) {
    weights.insert(weights.end(), static_cast<size_t>(width), std::sqrt(static_cast<double>(total) / static_cast<double>(depths * width)));
  };
  for (const int64_t stage : config_.feature_stages) share(config_.channels[static_cast<size_t>(stage)]);
  share(config_.embedding_dim);
  const Tensor x = raw.to(at::kDouble);
  feature_shift_.copy_(x.mean(0));
  // The constant keeps features that hardly vary on real images from dominating.
  feature_scale_.copy_(at::tensor(weights, at::kDouble).to(x.device()) / (x.std(0) + 1e-3));
}

}  // namespace fewstep::models
