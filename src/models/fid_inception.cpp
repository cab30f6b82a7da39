#include "src/models/fid_inception.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <nlohmann/json.hpp>

#include "src/models/json_fields.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::models {
// Named: a unity build would give members of anonymous types to a class with linkage.
namespace fid_inception_parts {

constexpr std::array<int64_t, 4> kWidths = {64, 192, 768, 2048};

struct Kernel {
  int64_t height, width;
  int64_t stride = 1;
  bool pad = true;  // to the same size
};
constexpr Kernel k1{1, 1}, k3{3, 3}, k5{5, 5}, k3_valid{3, 3, 1, false}, k3_down{3, 3, 2, false};
constexpr Kernel k1x7{1, 7}, k7x1{7, 1}, k1x3{1, 3}, k3x1{3, 1};

// max(conv(x) + shift, 0) in one pass over the result: oneDNN's fused convolution, which libtorch has as an operator of
// its own compiler. Without it (other processors, other types) two passes.
using ConvRelu = Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&, at::IntArrayRef, at::IntArrayRef,
                        at::IntArrayRef, int64_t, std::string_view, c10::List<std::optional<at::Scalar>>,
                        std::optional<std::string_view>);
Tensor conv_relu(const Tensor& x, const Tensor& weight, const Tensor& shift, int64_t stride,
                 std::array<int64_t, 2> pad) {
  static const auto fused = [] {
    const auto op = c10::Dispatcher::singleton().findSchema({"mkldnn::_convolution_pointwise", ""});
    return op ? std::optional(op->typed<ConvRelu>()) : std::nullopt;
  }();
  if (fused && x.is_cpu() && x.scalar_type() == at::kFloat)
    return fused->call(x, weight, shift, pad, {stride, stride}, {1, 1}, 1, "relu",
                       c10::List<std::optional<at::Scalar>>(), "");
  return at::conv2d(x, weight, shift, {stride, stride}, pad).relu_();
}

struct ConvWeight : nn::Module {
  Tensor weight;
  explicit ConvWeight(at::IntArrayRef shape) { parameter("weight", weight, shape); }
  void reset(at::Generator& g) override {
    const double fan_in = static_cast<double>(weight.numel() / weight.size(0));
    nn::init_normal(weight, std::sqrt(2.0 / fan_in), g);
  }
};

struct BatchNorm : nn::Module {
  Tensor weight, bias, mean, variance, batches;
  explicit BatchNorm(int64_t channels) {
    parameter("weight", weight, {channels});
    parameter("bias", bias, {channels});
    buffer("running_mean", mean, {channels});
    buffer("running_var", variance, {channels});
    buffer("num_batches_tracked", batches, {}, at::kLong);
  }
  void reset(at::Generator&) override {
    const NoGrad no_grad;
    weight.fill_(1), bias.zero_(), mean.zero_(), variance.fill_(1), batches.zero_();
  }
};

// Convolution without bias, batch norm with its running statistics, ReLU.
struct Unit : nn::Module {
  Unit(int64_t in, int64_t out, const Kernel& k, double eps_)
      : kernel(k), eps(eps_), conv({out, in, k.height, k.width}), bn(out) {
    child("conv", conv);
    child("bn", bn);
  }
  Tensor operator()(const Tensor& x) const {
    const int64_t ph = kernel.pad ? kernel.height / 2 : 0, pw = kernel.pad ? kernel.width / 2 : 0;
    if (folded.defined()) return conv_relu(x, folded, shift, kernel.stride, {ph, pw});
    const Tensor y = at::conv2d(x, conv.weight, {}, {kernel.stride, kernel.stride}, {ph, pw});
    return at::batch_norm(y, bn.weight, bn.bias, bn.mean, bn.variance, false, 0.0, eps, false).relu_();
  }
  void fold() {
    const Tensor scale = bn.weight.to(at::kDouble) / (bn.variance.to(at::kDouble) + eps).sqrt();
    folded = (conv.weight.to(at::kDouble) * scale.view({-1, 1, 1, 1}))
                 .to(conv.weight.scalar_type())
                 .contiguous(at::MemoryFormat::ChannelsLast);
    shift = (bn.bias.to(at::kDouble) - bn.mean.to(at::kDouble) * scale).to(conv.weight.scalar_type());
  }
  Kernel kernel;
  double eps;
  ConvWeight conv;
  BatchNorm bn;
  Tensor folded, shift;
};

// A block is a list of named units; how they are wired is its call operator's business.
struct Block : nn::Module {
  Block(int64_t divisor, double eps) : divisor_(divisor), eps_(eps) {}
  Unit& unit(const std::string& name, int64_t in, int64_t out, const Kernel& k) {
    units.push_back(std::make_unique<Unit>(in == 3 ? in : in / divisor_, out / divisor_, k, eps_));
    child(name, *units.back());
    return *units.back();
  }
  // Units first, first + 1, ..., last in a row.
  Tensor chain(Tensor x, size_t first, size_t last) const {
    for (size_t i = first; i <= last; ++i) x = (*units[i])(x);
    return x;
  }
  std::vector<std::unique_ptr<Unit>> units;

 private:
  int64_t divisor_;
  double eps_;
};

Tensor average_pool(const Tensor& x) {
  return at::avg_pool2d(x, {3, 3}, {1, 1}, {1, 1}, false, /*count_include_pad=*/false);
}
Tensor max_pool_same(const Tensor& x) { return at::max_pool2d(x, {3, 3}, {1, 1}, {1, 1}); }
Tensor max_pool_down(const Tensor& x) { return at::max_pool2d(x, {3, 3}, {2, 2}); }

struct MixedA : Block {  // 5b, 5c, 5d
  MixedA(int64_t in, int64_t pooled, int64_t divisor, double eps) : Block(divisor, eps) {
    unit("branch1x1", in, 64, k1);
    unit("branch5x5_1", in, 48, k1), unit("branch5x5_2", 48, 64, k5);
    unit("branch3x3dbl_1", in, 64, k1), unit("branch3x3dbl_2", 64, 96, k3), unit("branch3x3dbl_3", 96, 96, k3);
    unit("branch_pool", in, pooled, k1);
  }
  Tensor operator()(const Tensor& x) const {
    return at::cat({chain(x, 0, 0), chain(x, 1, 2), chain(x, 3, 5), chain(average_pool(x), 6, 6)}, 1);
  }
};

struct MixedB : Block {  // 6a
  MixedB(int64_t in, int64_t divisor, double eps) : Block(divisor, eps) {
    unit("branch3x3", in, 384, k3_down);
    unit("branch3x3dbl_1", in, 64, k1), unit("branch3x3dbl_2", 64, 96, k3), unit("branch3x3dbl_3", 96, 96, k3_down);
  }
  Tensor operator()(const Tensor& x) const { return at::cat({chain(x, 0, 0), chain(x, 1, 3), max_pool_down(x)}, 1); }
};

struct MixedC : Block {  // 6b to 6e
  MixedC(int64_t in, int64_t c7, int64_t divisor, double eps) : Block(divisor, eps) {
    unit("branch1x1", in, 192, k1);
    unit("branch7x7_1", in, c7, k1), unit("branch7x7_2", c7, c7, k1x7), unit("branch7x7_3", c7, 192, k7x1);
    unit("branch7x7dbl_1", in, c7, k1), unit("branch7x7dbl_2", c7, c7, k7x1), unit("branch7x7dbl_3", c7, c7, k1x7);
    unit("branch7x7dbl_4", c7, c7, k7x1), unit("branch7x7dbl_5", c7, 192, k1x7);
    unit("branch_pool", in, 192, k1);
  }
  Tensor operator()(const Tensor& x) const {
    return at::cat({chain(x, 0, 0), chain(x, 1, 3), chain(x, 4, 8), chain(average_pool(x), 9, 9)}, 1);
  }
};

struct MixedD : Block {  // 7a
  MixedD(int64_t in, int64_t divisor, double eps) : Block(divisor, eps) {
    unit("branch3x3_1", in, 192, k1), unit("branch3x3_2", 192, 320, k3_down);
    unit("branch7x7x3_1", in, 192, k1), unit("branch7x7x3_2", 192, 192, k1x7), unit("branch7x7x3_3", 192, 192, k7x1);
    unit("branch7x7x3_4", 192, 192, k3_down);
  }
  Tensor operator()(const Tensor& x) const { return at::cat({chain(x, 0, 1), chain(x, 2, 5), max_pool_down(x)}, 1); }
};

struct MixedE : Block {  // 7b, 7c
  MixedE(int64_t in, bool maximum, int64_t divisor, double eps) : Block(divisor, eps), pool_by_maximum(maximum) {
    unit("branch1x1", in, 320, k1);
    unit("branch3x3_1", in, 384, k1), unit("branch3x3_2a", 384, 384, k1x3), unit("branch3x3_2b", 384, 384, k3x1);
    unit("branch3x3dbl_1", in, 448, k1), unit("branch3x3dbl_2", 448, 384, k3);
    unit("branch3x3dbl_3a", 384, 384, k1x3), unit("branch3x3dbl_3b", 384, 384, k3x1);
    unit("branch_pool", in, 192, k1);
  }
  Tensor operator()(const Tensor& x) const {
    const Tensor b = chain(x, 1, 1), c = chain(x, 4, 5);
    return at::cat({chain(x, 0, 0), chain(b, 2, 2), chain(b, 3, 3), chain(c, 6, 6), chain(c, 7, 7),
                    chain(pool_by_maximum ? max_pool_same(x) : average_pool(x), 8, 8)},
                   1);
  }
  bool pool_by_maximum;
};

}  // namespace fid_inception_parts
using namespace fid_inception_parts;

// Holds the blocks; FidInception registers them under its own names.
struct FidInception::Network {
  explicit Network(const FidInceptionConfig& c)
      : stem(c.channel_divisor, c.bn_eps),
        m5b(192, 32, c.channel_divisor, c.bn_eps),
        m5c(256, 64, c.channel_divisor, c.bn_eps),
        m5d(288, 64, c.channel_divisor, c.bn_eps),
        m6a(288, c.channel_divisor, c.bn_eps),
        m6b(768, 128, c.channel_divisor, c.bn_eps),
        m6c(768, 160, c.channel_divisor, c.bn_eps),
        m6d(768, 160, c.channel_divisor, c.bn_eps),
        m6e(768, 192, c.channel_divisor, c.bn_eps),
        m7a(768, c.channel_divisor, c.bn_eps),
        m7b(1280, false, c.channel_divisor, c.bn_eps),
        m7c(2048, true, c.channel_divisor, c.bn_eps) {
    stem.unit("Conv2d_1a_3x3", 3, 32, k3_down), stem.unit("Conv2d_2a_3x3", 32, 32, k3_valid);
    stem.unit("Conv2d_2b_3x3", 32, 64, k3), stem.unit("Conv2d_3b_1x1", 64, 80, k1);
    stem.unit("Conv2d_4a_3x3", 80, 192, k3_valid);
  }
  std::array<std::pair<const char*, Block*>, 11> mixed() {
    return {{{"Mixed_5b", &m5b},
             {"Mixed_5c", &m5c},
             {"Mixed_5d", &m5d},
             {"Mixed_6a", &m6a},
             {"Mixed_6b", &m6b},
             {"Mixed_6c", &m6c},
             {"Mixed_6d", &m6d},
             {"Mixed_6e", &m6e},
             {"Mixed_7a", &m7a},
             {"Mixed_7b", &m7b},
             {"Mixed_7c", &m7c}}};
  }
  Block stem;
  MixedA m5b, m5c, m5d;
  MixedB m6a;
  MixedC m6b, m6c, m6d, m6e;
  MixedD m7a;
  MixedE m7b, m7c;
};

FidInceptionConfig FidInceptionConfig::from_json(const Json& json, std::string_view where) {
  const JsonFields fields(json, where);
  FidInceptionConfig c;
  fields.get("channel_divisor", c.channel_divisor);
  fields.get("num_classes", c.num_classes);
  fields.get("bn_eps", c.bn_eps);
  // The widths of the real network: the narrowest are 32 and 48, and 80 is the one that leaves only 1, 2, 4, 8, 16.
  if (c.channel_divisor < 1 || c.channel_divisor > 16 || 16 % c.channel_divisor != 0)
    fail<ConfigError>("{}: channel_divisor {} must be 1, 2, 4, 8 or 16", where, c.channel_divisor);
  if (c.num_classes < c.channel_divisor)
    fail<ConfigError>("{}: num_classes {} must be at least channel_divisor", where, c.num_classes);
  return c;
}

Json FidInceptionConfig::to_json() const {
  return {{"architecture", "pytorch_fid InceptionV3"},
          {"channel_divisor", channel_divisor},
          {"num_classes", num_classes},
          {"bn_eps", bn_eps}};
}

FidInception::FidInception(const FidInceptionConfig& config)
    : config_(config),
      net_(std::make_unique<Network>(config)),
      fc_(2048 / config.channel_divisor, config.num_classes / config.channel_divisor) {
  constexpr const char* kStem[] = {"Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"};
  for (size_t i = 0; i < std::size(kStem); ++i) child(kStem[i], *net_->stem.units[i]);
  for (const auto& [name, block] : net_->mixed()) child(name, *block);
  child("fc", fc_);
}

FidInception::~FidInception() = default;

InceptionTaps FidInception::operator()(const Tensor& images, InceptionDepth depth) const {
  expect_shape(images, {-1, 3, kSide, kSide}, "images of the FID InceptionV3");
  const Network& n = *net_;
  const bool folded = n.stem.units[0]->folded.defined();
  InceptionTaps out;
  Tensor x = n.stem.chain(folded ? images.contiguous(at::MemoryFormat::ChannelsLast) : images, 0, 2);
  out.pool1 = x = max_pool_down(x);
  if (depth == InceptionDepth::pool1) return out;
  out.pool2 = x = max_pool_down(n.stem.chain(x, 3, 4));
  if (depth == InceptionDepth::pool2) return out;
  out.mixed6e = x = n.m6e(n.m6d(n.m6c(n.m6b(n.m6a(n.m5d(n.m5c(n.m5b(x))))))));
  if (depth == InceptionDepth::mixed6e) return out;
  out.pool3 = at::adaptive_avg_pool2d(n.m7c(n.m7b(n.m7a(x))), {1, 1}).flatten(1);
  return out;
}

Tensor FidInception::unbiased_logits(const Tensor& pool3) const { return at::linear(pool3, fc_.weight); }

void FidInception::prepare_inference() {
  const NoGrad no_grad;
  for (const auto& unit : net_->stem.units) unit->fold();
  for (const auto& [name, block] : net_->mixed())
    for (const auto& unit : block->units) unit->fold();
}

int64_t FidInception::width(InceptionDepth depth) const {
  return kWidths[static_cast<size_t>(depth)] / config_.channel_divisor;
}

TensorMap adopt_fid_inception(TensorMap tensors) {
  std::vector<std::string> counters;
  for (const auto& [name, tensor] : tensors)
    if (name.ends_with(".bn.running_mean"))
      counters.push_back(name.substr(0, name.size() - 12) + "num_batches_tracked");
  for (const std::string& name : counters) tensors.try_emplace(name, at::zeros({}, at::kLong));
  return tensors;
}

}  // namespace fewstep::models
