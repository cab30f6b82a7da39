#include "trainers/perceptual.h"

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/models/contrastive.h"
#include "src/models/model.h"
#include "src/models/model_folder.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace fs = std::filesystem;
namespace {

// The folder of VGG16 itself, or nothing: encoders trained here lie in run or model folders.
bool is_vgg16(const fs::path& folder) {
  return fs::exists(folder / "config.json") && models::class_name_of(read_json(folder / "config.json")) == "torchvision VGG16";
}

Tensor three_channels(const Tensor& images) { return images.size(1) == 1 ? images.expand({-1, 3, -1, -1}) : images; }

}  // namespace

void describe(config::Visitor& v, PerceptualConfig& c) {
  v.field("encoder", c.encoder,
          "run or model folder of a `contrastive` or `classifier_encoder`, or the folder of VGG16 (LPIPS); empty: no perceptual term");
  v.field("stages", c.stages, "stages of that encoder whose activations are compared (VGG16: always all five)", config::kNonNegative);
  v.field("weight", c.weight, "weight of the perceptual term", config::kNonNegative);
}

PerceptualDistance::PerceptualDistance(const std::string& folder, std::vector<int64_t> stages, const Tensor& examples)
    : stages_(std::move(stages)) {
  if (is_vgg16(folder)) {
    const fs::path linear = fs::path(folder) / "lpips";
    lpips_ = std::make_unique<models::Lpips>(folder, fs::is_directory(linear) ? linear : fs::path(), examples.device(),
                                             examples.scalar_type());
    return;
  }
  const fs::path root = models::component_folder(folder, {"encoder", "clip"});
  model_ = models::load_model(root);
  if (const auto* clip = dynamic_cast<const models::ContrastiveModel*>(model_.get())) encoder_ = &clip->image();
  if (const auto* encoder = dynamic_cast<const models::ConvEncoder*>(model_.get())) encoder_ = encoder;
  FEW_CHECK(encoder_ != nullptr, "{}: not a ConvEncoder nor a ContrastiveModel", root.string());
  const auto depth = static_cast<int64_t>(encoder_->config().channels.size());
  for (const int64_t stage : stages_)
    if (stage < 0 || stage >= depth)
      fail<ConfigError>("perceptual.stages: {} is not a stage of {} (0 to {})", stage, root.string(), depth - 1);
  model_->to(examples.device());
  model_->to(examples.scalar_type());
  model_->requires_grad(false);
  const NoGrad no_grad;
  const auto activations = encoder_->stages(examples);
  for (const int64_t stage : stages_) {
    const Tensor& a = activations[static_cast<size_t>(stage)];
    scales_.push_back(a.std(at::OptionalIntArrayRef({0, 2, 3}), true, true) + 1e-2);
  }
}

Tensor PerceptualDistance::sum(const Tensor& images, const Tensor& targets) const {
  if (lpips_) return (*lpips_)(three_channels(images), three_channels(targets)).sum().to(images.scalar_type());
  const auto a = encoder_->stages(images);
  std::vector<Tensor> b;
  {
    const NoGrad no_grad;
    b = encoder_->stages(targets);
  }
  Tensor total;
  for (size_t k = 0; k < stages_.size(); ++k) {
    const auto stage = static_cast<size_t>(stages_[k]);
    const Tensor d = ((a[stage] - b[stage]) / scales_[k]).abs().mean({1, 2, 3}).sum();
    total = total.defined() ? total + d : d;
  }
  return total / static_cast<double>(stages_.size());
}

}  // namespace fewstep
