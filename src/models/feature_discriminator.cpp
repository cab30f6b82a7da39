#include "src/models/feature_discriminator.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "src/base/text.h"
#include "src/models/json_fields.h"
#include "src/models/references.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::models {
namespace {

const std::vector<std::string> kDiscriminatorHeads = {"stylegan_t"}, kDiscriminatorNorms = {"batch_local", "group", "none"};
constexpr double kLeak = 0.2;

bool is_one_of(const std::string& name, const std::vector<std::string>& known) {
  return std::find(known.begin(), known.end(), name) != known.end();
}

nn::SpectralConvOptions circular_kernel(int64_t kernel) {
  return {.kernel = kernel, .stride = 1, .padding = kernel / 2, .circular = true, .bias = true};
}

}  // namespace

FeatureDiscriminatorConfig FeatureDiscriminatorConfig::from_json(const Json& json, std::string_view where) {
  const JsonFields fields(json, where);
  FeatureDiscriminatorConfig c;
  fields.get("channels", c.channels);
  fields.get("head", c.head);
  fields.get("norm", c.norm);
  fields.get("virtual_batch", c.virtual_batch);
  fields.get("norm_groups", c.norm_groups);
  fields.get("kernel", c.kernel);
  fields.get("text_width", c.text_width);
  fields.get("projection_width", c.projection_width);
  c.validate(where);
  return c;
}

Json FeatureDiscriminatorConfig::to_json() const {
  return {{"_class_name", "FeatureDiscriminator"},
          {"channels", channels},
          {"head", head},
          {"norm", norm},
          {"virtual_batch", virtual_batch},
          {"norm_groups", norm_groups},
          {"kernel", kernel},
          {"text_width", text_width},
          {"projection_width", projection_width}};
}

void FeatureDiscriminatorConfig::validate(std::string_view where) const {
  if (channels.empty()) fail<ConfigError>("{}: channels is empty: a feature discriminator needs at least one tap", where);
  if (!is_one_of(head, kDiscriminatorHeads)) fail<ConfigError>("{}: head: {}", where, not_one_of(head, kDiscriminatorHeads));
  if (!is_one_of(norm, kDiscriminatorNorms)) fail<ConfigError>("{}: norm: {}", where, not_one_of(norm, kDiscriminatorNorms));
  if (kernel < 1 || kernel % 2 == 0) fail<ConfigError>("{}: kernel {} must be odd", where, kernel);
  if (virtual_batch < 1 || norm_groups < 1 || projection_width < 1 || text_width < 0)
    fail<ConfigError>("{}: virtual_batch ({}), norm_groups ({}) and projection_width ({}) must be at least 1, text_width ({}) at least 0",
                      where, virtual_batch, norm_groups, projection_width, text_width);
  for (const int64_t width : channels)
    if (width < 1 || (norm == "group" && width % norm_groups != 0))
      fail<ConfigError>("{}: a tap of {} channels does not divide into {} groups; set norm_groups to a divisor", where, width,
                        norm_groups);
}

void describe(config::Visitor& v, FeatureDiscriminatorConfig& c) {
  v.field("head", c.head, "kind of head on every tap: stylegan_t");
  v.field("norm", c.norm,
          "batch_local (statistics of virtual_batch samples; at one sample a device use group), group or none");
  v.field("virtual_batch", c.virtual_batch, "samples that share the statistics of batch_local", config::kAtLeastOne);
  v.field("norm_groups", c.norm_groups, "groups of norm: group", config::kAtLeastOne);
  v.field("kernel", c.kernel, "width of the residual circular convolution (odd)", config::kAtLeastOne);
  v.field("projection_width", c.projection_width, "d of the text projection <out, W c> / sqrt(d)", config::kAtLeastOne);
  v.check(is_one_of(c.head, kDiscriminatorHeads), "head", "must be stylegan_t");
  v.check(is_one_of(c.norm, kDiscriminatorNorms), "norm", "must be batch_local, group or none");
  v.check(c.kernel % 2 == 1, "kernel", "must be odd");
}

Tensor virtual_batches(const Tensor& ids, int64_t virtual_batch) {
  const Tensor host = ids.to(at::kCPU, at::kLong).contiguous();
  const int64_t B = host.size(0), G = (B + virtual_batch - 1) / virtual_batch;
  const int64_t* id = host.const_data_ptr<int64_t>();
  std::vector<int64_t> order(static_cast<size_t>(B));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return id[a] < id[b]; });
  Tensor groups = at::empty({B}, at::kLong);
  for (int64_t i = 0; i < B; ++i) groups.mutable_data_ptr<int64_t>()[order[static_cast<size_t>(i)]] = i * G / B;
  return groups;
}

BatchNormLocal::BatchNormLocal(int64_t channels, double eps) : eps_(eps) {
  parameter("weight", weight, {channels});
  parameter("bias", bias, {channels});
}

void BatchNormLocal::reset(at::Generator&) {
  const NoGrad no_grad;
  weight.fill_(1.0), bias.zero_();
}

Tensor BatchNormLocal::operator()(const Tensor& x, const Tensor& groups) const {
  const Tensor same = groups.unsqueeze(0).eq(groups.unsqueeze(1)).to(x.options());  // [B, B]
  const Tensor average = same / same.sum(1, true);                                  // rows: mean over the own group
  const Tensor centred = x - at::mm(average, x.mean(2)).unsqueeze(2);
  const Tensor variance = at::mm(average, centred.square().mean(2)).unsqueeze(2);  // [B, C, 1]
  return centred * (variance + eps_).rsqrt() * weight.view({1, -1, 1}) + bias.view({1, -1, 1});
}

FeatureDiscriminator::Block::Block(const FeatureDiscriminatorConfig& c, int64_t channels, int64_t kernel)
    : conv(channels, channels, circular_kernel(kernel)) {
  child("conv", conv);
  if (c.norm == "batch_local") child("norm", *(local = std::make_unique<BatchNormLocal>(channels)));
  if (c.norm == "group") child("norm", *(group = std::make_unique<nn::GroupNorm>(c.norm_groups, channels)));
}

Tensor FeatureDiscriminator::Block::operator()(const Tensor& x, const Tensor& groups) const {
  Tensor y = conv(x);
  if (local) y = (*local)(y, groups);
  if (group) y = (*group)(y);
  return at::leaky_relu(y, kLeak);
}

FeatureDiscriminator::Head::Head(const FeatureDiscriminatorConfig& c, int64_t channels)
    : first(c, channels, 1),
      residual(c, channels, c.kernel),
      classify(channels, c.text_width > 0 ? c.projection_width : 1, circular_kernel(1)) {
  child("first", first), child("residual", residual), child("classify", classify);
  if (c.text_width > 0) child("project", *(project = std::make_unique<nn::Linear>(c.text_width, c.projection_width)));
}

Tensor FeatureDiscriminator::Head::operator()(const Tensor& x, const Tensor& text, const Tensor& groups) const {
  const Tensor h = first(x, groups);
  const Tensor out = classify((residual(h, groups) + h) * M_SQRT1_2);  // [B, 1 or d, L]
  if (!project) return out.squeeze(1);
  const Tensor map = (*project)(text).unsqueeze(2);  // [B, d, 1]
  return (out * map).sum(1) / std::sqrt(static_cast<double>(map.size(1)));
}

FeatureDiscriminator::FeatureDiscriminator(const FeatureDiscriminatorConfig& config)
    : config_((config.validate("FeatureDiscriminator"), config)) {
  for (const int64_t width : config.channels) heads_.add(config, width);
  child("heads", heads_);
}

Tensor FeatureDiscriminator::operator()(const std::vector<Tensor>& taps, const Tensor& text, const Tensor& ids) const {
  if (taps.size() != heads_.size())
    fail("FeatureDiscriminator: {} feature maps for {} heads; the taps must be those its channels were taken from", taps.size(),
         heads_.size());
  const int64_t B = taps.front().size(0);
  if (config_.text_width > 0) expect_shape(text, {B, config_.text_width}, "FeatureDiscriminator: text");
  if (ids.defined()) expect_shape(ids, {B}, "FeatureDiscriminator: ids");
  const Tensor groups =
      virtual_batches(ids.defined() ? ids : at::arange(B, at::kLong), config_.virtual_batch).to(taps.front().device());
  std::vector<Tensor> logits;
  for (size_t i = 0; i < taps.size(); ++i) {
    expect_shape(taps[i], {B, config_.channels[i], -1}, fmt::format("FeatureDiscriminator: tap {}", i));
    logits.push_back(heads_[i](taps[i], text, groups));
  }
  return at::cat(logits, 1);
}

TensorMap feature_discriminator_reference(nn::Module& module, const TensorMap& inputs, const Json&, bool gradients) {
  auto& model = dynamic_cast<FeatureDiscriminator&>(module);
  at::AutoGradMode grad_mode(gradients);
  std::vector<Tensor> taps;
  for (size_t i = 0; i < model.config().channels.size(); ++i)
    taps.push_back(reference_input(inputs, fmt::format("tap{}", i)).detach().clone().requires_grad_(gradients));
  const Tensor text = model.config().text_width > 0 ? reference_input(inputs, "text") : Tensor();
  TensorMap out;
  model.train(false);
  out["logits"] = model(taps, text).detach();
  model.train(true);
  const Tensor logits = model(taps, text), loss = logits.square().mean();
  out["train_logits"] = logits.detach(), out["loss"] = loss.detach();
  for (const NamedTensor& b : model.buffers()) out["after." + b.name] = b.tensor.clone();
  if (gradients) {
    add_gradients(module, loss, &out);
    for (size_t i = 0; i < taps.size(); ++i) out[fmt::format("grad_tap{}", i)] = taps[i].grad();
  }
  model.train(false);
  return out;
}

}  // namespace fewstep::models
