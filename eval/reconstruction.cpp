#include "eval/reconstruction.h"

#include <cmath>

#include "eval/accuracy.h"
#include "eval/pair_metrics.h"
#include "src/base/error.h"
#include "src/models/contrastive.h"
#include "src/models/model.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace {

// One number an image, from it and its original.
class PairMetric : public Metric {
 public:
  void add(const EvalBatch& batch) override {
    if (batch.originals.defined()) measure(batch.originals, batch.images);
  }
  std::map<std::string, Value> result() const override {
    if (values_.empty()) return {};
    return {{name(), summary()}};
  }

 protected:
  virtual void measure(const Tensor& originals, const Tensor& images) = 0;  // appends to values_
  virtual std::string name() const = 0;
  virtual Value summary() const { return mean_with_interval(values_); }
  std::vector<double> values_;
};

class PsnrMetric : public PairMetric {
  void measure(const Tensor& originals, const Tensor& images) override {
    for (int64_t i = 0; i < images.size(0); ++i) values_.push_back(psnr(originals[i], images[i]));
  }
  std::string name() const override { return "PSNR"; }
  Value summary() const override {
    std::vector<double> finite;
    for (const double v : values_)
      if (std::isfinite(v)) finite.push_back(v);
    Value value = mean_with_interval(finite);
    if (finite.size() < values_.size())
      value.note = fmt::format("{} of {} images are equal to their originals and not counted", values_.size() - finite.size(),
                               values_.size());
    return value;
  }
};

class SsimMetric : public PairMetric {
  void measure(const Tensor& originals, const Tensor& images) override {
    for (int64_t i = 0; i < images.size(0); ++i) values_.push_back(ssim(originals[i], images[i]));
  }
  std::string name() const override { return "SSIM"; }
};

std::filesystem::path perceptual_component(const MetricContext& c) {
  return find_component(c.perceptual, {"torchvision VGG16", "ConvEncoder", "ContrastiveModel"});
}

// VGG16, or an encoder trained here.
class PerceptualMetric : public PairMetric {
 public:
  explicit PerceptualMetric(const MetricContext& c) : device_(c.device) {
    const std::filesystem::path component = perceptual_component(c);
    if (models::class_name_of(read_json(component / "config.json")) == "torchvision VGG16") {
      vgg_ = std::make_unique<PerceptualDistance>(component, c.perceptual_name, c.device);
      return;
    }
    identity_ = identify(component, c.perceptual_name);
    module_ = models::load_model(component);
    module_->to(c.device);
    if (const auto* clip = dynamic_cast<const models::ContrastiveModel*>(module_.get())) encoder_ = &clip->image();
    if (const auto* conv = dynamic_cast<const models::ConvEncoder*>(module_.get())) encoder_ = conv;
    FEW_CHECK(encoder_ != nullptr, "{}: not an encoder with stages", component.string());
  }

 private:
  void measure(const Tensor& originals, const Tensor& images) override {
    const Tensor d = (vgg_ ? (*vgg_)(rgb(originals), rgb(images)) : of_encoder(originals, images)).contiguous();
    values_.insert(values_.end(), d.data_ptr<double>(), d.data_ptr<double>() + d.numel());
  }
  std::string name() const override { return vgg_ ? vgg_->metric() : metric_name("perceptual", identity_, {}, {}); }

  static Tensor rgb(const Tensor& x) { return x.size(1) == 1 ? x.expand({-1, 3, -1, -1}) : x; }
  Tensor of_encoder(const Tensor& a, const Tensor& b) const {
    const auto stages = [&](const Tensor& x) {
      const models::ConvEncoderConfig& c = encoder_->config();
      return encoder_->stages(prepare_images(x, c.in_channels, c.image_size).to(device_));
    };
    return models::stage_distance(stages(a), stages(b)).to(at::kCPU);
  }

  at::Device device_;
  std::unique_ptr<PerceptualDistance> vgg_;
  EncoderIdentity identity_;
  std::unique_ptr<nn::Module> module_;
  const models::ConvEncoder* encoder_ = nullptr;
};

class ReconstructionFd : public Metric {
 public:
  explicit ReconstructionFd(const MetricContext& c)
      : judge_(*c.judge), name_(metric_name("rFD", c.judge->identity())) {}
  void add(const EvalBatch& batch) override {
    if (!batch.originals.defined()) return;
    originals_.add(judge_.features(batch.originals));
    samples_.add(batch.features);
  }
  std::map<std::string, Value> result() const override {
    if (samples_.count() < 2) return {};
    Value value = frechet_with_interval(FrechetReference(originals_), samples_);
    if (value.n < originals_.dim())
      value.note = fmt::format("N = {} below D = {}: dominated by bias", value.n, originals_.dim());
    return {{name_, value}};
  }

 private:
  const ImageEncoder& judge_;
  std::string name_;
  FeatureStatistics originals_;
  GroupedStatistics samples_;
};

}  // namespace

std::unique_ptr<Metric> make_psnr(const MetricContext&) { return std::make_unique<PsnrMetric>(); }
std::unique_ptr<Metric> make_ssim(const MetricContext&) { return std::make_unique<SsimMetric>(); }
std::unique_ptr<Metric> make_perceptual(const MetricContext& c) {
  if (c.perceptual.empty())
    fail<ConfigError>("metric perceptual: set 'perceptual' to the folder of VGG16 or to the run of an encoder, or 'judge'");
  return std::make_unique<PerceptualMetric>(c);
}
EncoderIdentity perceptual_identity(const MetricContext& c) { return identify(perceptual_component(c), c.perceptual_name); }
std::unique_ptr<Metric> make_reconstruction_fd(const MetricContext& c) {
  if (!c.judge) fail<ConfigError>("metric rfd: set 'judge' to an encoder's run or model folder");
  return std::make_unique<ReconstructionFd>(c);
}

}  // namespace fewstep::eval
