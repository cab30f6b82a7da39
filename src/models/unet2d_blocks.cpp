#include "src/models/unet2d_blocks.h"

#include "src/nn/attention.h"
#include "src/nn/fused.h"
#include "src/nn/fused_norm.h"
#include "src/nn/recompute.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::models {
namespace {

constexpr double kTransformerNormEps = 1e-6;  // of the GroupNorm before a transformer
constexpr nn::Conv2dOptions kUnetPointwise{.kernel = 1, .padding = 0};

// x + fresh, in the place of `fresh`: the output of a convolution or linear layer, which no backward pass looks at.
Tensor add_to_fresh(const Tensor& fresh, const Tensor& x) {
  const bool plain = !at::GradMode::is_enabled() || !fresh.is_view();  // writing into a view costs copies in backward
  const bool in_place = plain && fresh.scalar_type() == x.scalar_type() && fresh.is_contiguous() && x.sizes() == fresh.sizes();
  return in_place ? fresh.add_(x) : x + fresh;  // other types: autocast's layers are narrower than the residual stream
}

template <class Layer>
double products(const Layer& layer) {  // multiplications and additions at each place
  return 2.0 * static_cast<double>(layer.weight.numel());
}

void zero_layer(Tensor& weight, Tensor& bias) {
  const NoGrad no_grad;
  weight.zero_();
  if (bias.defined()) bias.zero_();
}

}  // namespace

UnetResnet::UnetResnet(int64_t in_channels, int64_t out_channels, const UNet2DConfig& c)
    : scale_shift_(c.resnet_time_scale_shift == "scale_shift"),
      norm1_(c.norm_num_groups, in_channels, c.norm_eps),
      norm2_(c.norm_num_groups, out_channels, c.norm_eps),
      conv1_(in_channels, out_channels),
      conv2_(out_channels, out_channels),
      time_emb_proj_(c.time_embed_dim(), scale_shift_ ? 2 * out_channels : out_channels) {
  child("norm1", norm1_);
  child("conv1", conv1_);
  child("time_emb_proj", time_emb_proj_);
  child("norm2", norm2_);
  child("conv2", conv2_);
  if (in_channels != out_channels) child("conv_shortcut", conv_shortcut_.emplace(in_channels, out_channels, kUnetPointwise));
}

void UnetResnet::reset(at::Generator&) { zero_layer(conv2_.weight, conv2_.bias); }

Tensor UnetResnet::operator()(const Tensor& x, const Tensor& skip, const UnetPass& pass) const {
  const auto body = [this](const nn::Tensors& in) { return nn::Tensors{run(in[1].defined() ? at::cat({in[0], in[1]}, 1) : in[0], in[2])}; };
  const nn::Tensors inputs = {x, skip, pass.emb};  // recompute keeps x and skip, not what joins them
  return (pass.recompute ? nn::recompute(*this, body, inputs) : body(inputs))[0];
}

Tensor UnetResnet::run(const Tensor& x, const Tensor& emb) const {
  const Tensor h = conv1_(nn::group_norm_silu(norm1_, x)), time = time_emb_proj_(emb);
  Tensor y;
  if (scale_shift_) {
    const std::vector<Tensor> t = append_dims(time, 4).chunk(2, 1);
    y = at::silu(norm2_(h) * (1 + t[0]) + t[1]);
  } else {
    y = nn::group_norm_silu(norm2_, h, time);
  }
  return add_to_fresh(conv2_(y), conv_shortcut_ ? (*conv_shortcut_)(x) : x);
}

double UnetResnet::flops(int64_t pixels) const {
  const double at_each = products(conv1_) + products(conv2_) + (conv_shortcut_ ? products(*conv_shortcut_) : 0.0);
  return at_each * static_cast<double>(pixels) + products(time_emb_proj_);
}

UnetAttention::UnetAttention(int64_t channels, int64_t context_dim, int64_t heads)
    : heads_(heads), to_q_(channels, channels, false), to_k_(context_dim, channels, false), to_v_(context_dim, channels, false) {
  child("to_q", to_q_);
  child("to_k", to_k_);
  child("to_v", to_v_);
  to_out_.add(channels, channels);  // "to_out.0"; diffusers' "to_out.1" is a dropout
  child("to_out", to_out_);
}

Tensor UnetAttention::operator()(const Tensor& x, const Tensor& context, int64_t batch) const {
  const auto heads = [&](const Tensor& t) { return t.view({batch, -1, heads_, t.size(-1) / heads_}).transpose(1, 2); };  // (b n) (h d) -> b h n d
  const Tensor source = context.defined() ? context.flatten(0, 1) : x;
  const Tensor y = merge_heads(nn::attention(heads(to_q_(x)), heads(to_k_(source)), heads(to_v_(source))));
  return to_out_[0](y.flatten(0, 1));
}

UnetFeedForward::Gate::Gate(int64_t in_features, int64_t out_features) : proj(in_features, 2 * out_features) { child("proj", proj); }

UnetFeedForward::Net::Net(int64_t channels) : first(channels, 4 * channels), last(4 * channels, channels) {
  child("0", first);
  child("2", last);  // "1" is a dropout
}

UnetFeedForward::UnetFeedForward(int64_t channels) : net_(channels) { child("net", net_); }

Tensor UnetFeedForward::operator()(const Tensor& x) const { return net_.last(nn::geglu(net_.first.proj(x))); }

UnetTransformerBlock::UnetTransformerBlock(int64_t channels, int64_t context_dim, int64_t heads)
    : norm1_(channels), norm2_(channels), norm3_(channels), attn1_(channels, channels, heads), attn2_(channels, context_dim, heads), ff_(channels) {
  child("norm1", norm1_);
  child("attn1", attn1_);
  child("norm2", norm2_);
  child("attn2", attn2_);
  child("norm3", norm3_);
  child("ff", ff_);
}

Tensor UnetTransformerBlock::operator()(const Tensor& x, const Tensor& context, int64_t batch) const {
  const Tensor a = add_to_fresh(attn1_(norm1_(x), {}, batch), x);
  const Tensor b = add_to_fresh(attn2_(norm2_(a), context, batch), a);
  return add_to_fresh(ff_(norm3_(b)), b);
}

UnetTransformer::UnetTransformer(int64_t channels, int64_t heads, int64_t depth, const UNet2DConfig& c)
    : channels_(channels), context_dim_(c.cross_attention_dim), norm_(c.norm_num_groups, channels, kTransformerNormEps) {
  child("norm", norm_);
  if (c.use_linear_projection)
    child("proj_in", linear_in_.emplace(channels, channels));
  else
    child("proj_in", conv_in_.emplace(channels, channels, kUnetPointwise));
  for (int64_t i = 0; i < depth; ++i) transformer_blocks_.add(channels, c.cross_attention_dim, heads);
  child("transformer_blocks", transformer_blocks_);
  if (c.use_linear_projection)
    child("proj_out", linear_out_.emplace(channels, channels));
  else
    child("proj_out", conv_out_.emplace(channels, channels, kUnetPointwise));
  make_parts();
}

void UnetTransformer::make_parts() {
  for (size_t i = 0; i < std::max<size_t>(1, transformer_blocks_.size()); ++i) {
    Part& part = *parts_.emplace_back(std::make_unique<Part>());
    if (i < transformer_blocks_.size()) part.child("block", transformer_blocks_[i]);
  }
  parts_.front()->child("norm", norm_);
  const auto projection = [](Part& part, std::optional<nn::Linear>& linear, std::optional<nn::Conv2d>& conv) {
    part.child("proj", linear ? static_cast<nn::Module&>(*linear) : *conv);
  };
  projection(*parts_.front(), linear_in_, conv_in_);
  if (parts_.size() > 1)
    projection(*parts_.back(), linear_out_, conv_out_);
  else
    parts_.back()->child("proj_out", linear_out_ ? static_cast<nn::Module&>(*linear_out_) : *conv_out_);
}

void UnetTransformer::reset(at::Generator&) {
  if (linear_out_) zero_layer(linear_out_->weight, linear_out_->bias);
  if (conv_out_) zero_layer(conv_out_->weight, conv_out_->bias);
}

Tensor UnetTransformer::enter(const Tensor& x) const {
  const Tensor normed = norm_(x);
  const auto tokens = [](const Tensor& t) { return t.permute({0, 2, 3, 1}).reshape({-1, t.size(1)}); };  // b c h w -> (b h w) c
  return linear_in_ ? (*linear_in_)(tokens(normed)) : tokens((*conv_in_)(normed));
}

Tensor UnetTransformer::leave(const Tensor& tokens, const Tensor& x) const {
  const auto image = [&x](const Tensor& t) {  // (b h w) c -> b c h w
    return t.view({x.size(0), x.size(2), x.size(3), x.size(1)}).permute({0, 3, 1, 2});
  };
  return linear_out_ ? x + image((*linear_out_)(tokens)) : add_to_fresh((*conv_out_)(image(tokens).contiguous()), x);
}

Tensor UnetTransformer::run_part(size_t index, const Tensor& tokens, const Tensor& x, const Tensor& context) const {
  Tensor h = index == 0 ? enter(x) : tokens;
  if (index < transformer_blocks_.size()) h = transformer_blocks_[index](h, context, context.size(0));
  return index + 1 == parts_.size() ? leave(h, x) : h;
}

Tensor UnetTransformer::operator()(const Tensor& x, const UnetPass& pass) const {
  Tensor h;
  for (size_t i = 0; i < parts_.size(); ++i) {
    const auto body = [this, i](const nn::Tensors& in) { return nn::Tensors{run_part(i, in[0], in[1], in[2])}; };
    const bool at_an_end = i == 0 || i + 1 == parts_.size();
    const nn::Tensors inputs = {h, at_an_end ? x : Tensor(), pass.context};
    h = (pass.recompute ? nn::recompute(*parts_[i], body, inputs) : body(inputs))[0];
  }
  return h;
}

double UnetTransformer::flops(int64_t pixels, int64_t context_length) const {
  const auto n = static_cast<double>(pixels), L = static_cast<double>(context_length);
  const auto C = static_cast<double>(channels_), D = static_cast<double>(context_dim_);
  const double linear = n * C * C * (4 + 2 + 12) + 2 * L * C * D;  // q k v out; q out; feed-forward; k v of the context
  const double attention = 2 * n * n * C + 2 * n * L * C;
  return 2 * (2 * n * C * C + static_cast<double>(transformer_blocks_.size()) * (linear + attention));
}

UnetStage::Sampler::Sampler(int64_t channels, UnetResample kind)
    : conv(channels, channels, {.stride = kind == UnetResample::down ? 2 : 1}) {
  child("conv", conv);
}

UnetStage::UnetStage(const UnetStageShape& s, const UNet2DConfig& c) : resample_(s.resample) {
  for (const int64_t in : s.inputs) {
    if (s.attention) attentions_.add(s.channels, s.heads, s.depth, c);
    resnets_.add(in, s.channels, c);
  }
  child("attentions", attentions_);
  child("resnets", resnets_);
  if (resample_ == UnetResample::none) return;
  samplers_.add(s.channels, resample_);
  child(resample_ == UnetResample::down ? "downsamplers" : "upsamplers", samplers_);
}

Tensor UnetStage::down(Tensor x, const UnetPass& pass, std::vector<Tensor>* skips) const {
  for (size_t i = 0; i < resnets_.size(); ++i) {
    x = resnets_[i](x, {}, pass);
    if (attentions_.size() > 0) x = attentions_[i](x, pass);
    skips->push_back(x);
  }
  if (samplers_.size() > 0) skips->push_back(x = samplers_[0].conv(x));
  return x;
}

Tensor UnetStage::up(Tensor x, const UnetPass& pass, std::vector<Tensor>* skips) const {
  for (size_t i = 0; i < resnets_.size(); ++i) {
    const Tensor skip = skips->back();
    skips->pop_back();
    x = resnets_[i](x, skip, pass);
    if (attentions_.size() > 0) x = attentions_[i](x, pass);
  }
  // To the size of the next level, which is not twice this one where it is odd.
  if (samplers_.size() > 0) x = samplers_[0].conv(at::upsample_nearest2d(x, skips->back().sizes().slice(2)));
  return x;
}

double UnetStage::flops(int64_t pixels, int64_t context_length) const {
  double sum = 0;
  for (const auto& resnet : resnets_) sum += resnet->flops(pixels);
  for (const auto& attention : attentions_) sum += attention->flops(pixels, context_length);
  return sum;
}

double UnetStage::resample_flops(int64_t pixels) const {
  return samplers_.size() == 0 ? 0.0 : products(samplers_[0].conv) * static_cast<double>(pixels);
}

UnetMidBlock::UnetMidBlock(const UNet2DConfig& c) {
  const int64_t channels = c.block_out_channels.back(), deepest = c.levels() - 1;
  const bool attention = c.mid_block_type == "UNetMidBlock2DCrossAttn";
  if (attention) attentions_.add(channels, c.heads(deepest), c.depth(deepest), c);
  child("attentions", attentions_);
  for (int i = 0; i < (attention ? 2 : 1); ++i) resnets_.add(channels, channels, c);
  child("resnets", resnets_);
}

Tensor UnetMidBlock::operator()(Tensor x, const UnetPass& pass) const {
  x = resnets_[0](x, {}, pass);
  if (attentions_.size() > 0) x = resnets_[1](attentions_[0](x, pass), {}, pass);
  return x;
}

double UnetMidBlock::flops(int64_t pixels, int64_t context_length) const {
  double sum = 0;
  for (const auto& resnet : resnets_) sum += resnet->flops(pixels);
  for (const auto& attention : attentions_) sum += attention->flops(pixels, context_length);
  return sum;
}

}  // namespace fewstep::models
