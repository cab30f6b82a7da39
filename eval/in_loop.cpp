#include "eval/in_loop.h"

#include "eval/distance_metric.h"
#include "eval/preprocessing.h"
#include "src/base/error.h"
#include "src/models/dinov2.h"
#include "src/models/model.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace fs = std::filesystem;
namespace {

constexpr const char* kInLoop = "in-loop";

// eval's published DINOv2 reads 224 x 224 pixels, as dgm-eval does; a discriminator reads images as they are.
class InLoopVit : public ImageEncoder {
 public:
  InLoopVit(const fs::path& component, EncoderIdentity identity, at::Device device)
      : module_(models::load_model(component)),
        vit_(dynamic_cast<const models::Dinov2Model&>(*module_)),
        identity_(std::move(identity)),
        device_(device) {
    module_->to(device);
    module_->train(false);
    module_->requires_grad(false);
  }
  Encoded encode(const Tensor& images) const override {
    const NoGrad no_grad;
    const int64_t patch = vit_.config().patch_size;
    const int64_t side = std::max(patch, images.size(2) / patch * patch);
    const Tensor rgb = images.size(1) == 1 ? images.expand({-1, 3, -1, -1}).contiguous() : images;
    std::vector<Tensor> features;
    for (const Tensor& part : rgb.split(64))
      features.push_back(vit_(dinov2_input(part, side).to(device_)).pooled().to(at::kCPU, at::kFloat));
    return {at::cat(features), {}};
  }
  EncoderIdentity identity() const override { return identity_; }

 private:
  std::unique_ptr<nn::Module> module_;
  const models::Dinov2Model& vit_;
  EncoderIdentity identity_;
  at::Device device_;
};

}  // namespace

std::unique_ptr<ImageEncoder> load_in_loop_encoder(const fs::path& folder, at::Device device,
                                                   std::span<const EncoderIdentity> judges) {
  const fs::path component = find_component(folder, {"Dinov2Model", "ConvEncoder", "ContrastiveModel"});
  const EncoderIdentity identity = identify(component, kInLoop);
  for (const EncoderIdentity& judge : judges)
    if (judge.sha256 == identity.sha256)
      fail<ConfigError>("in_loop: {} has the weights of '{}' ({}): a discriminator's network cannot judge what it trained",
                        folder.string(), judge.name, judge.sha256.substr(0, 8));
  if (models::class_name_of(read_json(component / "config.json")) == "Dinov2Model")
    return std::make_unique<InLoopVit>(component, identity, device);
  return load_image_encoder(component, kInLoop, device);
}

std::unique_ptr<Metric> make_in_loop_fd(const MetricContext& c) {
  if (!c.in_loop || !c.in_loop_reference)
    fail<ConfigError>("metric in_loop_fd: set 'in_loop' to the folder of the features that the discriminator read");
  return std::make_unique<DistanceMetric>(
      metric_name("in_loop_FD", c.in_loop->identity()), *c.in_loop_reference,
      [encoder = c.in_loop](const EvalBatch& batch) { return encoder->features(batch.images); });
}

bool is_in_loop_metric(std::string_view name) { return name.starts_with("in_loop_FD"); }

}  // namespace fewstep::eval
