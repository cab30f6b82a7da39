#include "eval/metrics.h"

#include "eval/accuracy.h"
#include "eval/band_power.h"
#include "eval/cut_rate.h"
#include "eval/distance_metric.h"
#include "eval/in_loop.h"
#include "eval/kernel_distance.h"
#include "eval/nearest_training.h"
#include "eval/prdc.h"
#include "eval/reconstruction.h"
#include "eval/student_metrics.h"
#include "src/base/error.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace {

constexpr int64_t kNeighbours = 3;  // Kynkaanniemi et al. 2019

void need_reference(const MetricContext& c, std::string_view metric) {
  if (!c.judge || !c.reference)
    fail<ConfigError>("metric {}: set 'judge' to an encoder's run or model folder, and 'data' to real images", metric);
}

// Metrics over pairs of features keep them all: 10,000 x 256 floats are 10 MB.
class FeatureMetric : public Metric {
 public:
  explicit FeatureMetric(const MetricContext& c) : real_(c.reference_features), encoder_(c.judge->identity()) {}
  void add(const EvalBatch& batch) override { parts_.push_back(batch.features); }

 protected:
  Tensor samples() const { return at::cat(parts_); }
  bool empty() const { return parts_.empty(); }
  Tensor real_;
  EncoderIdentity encoder_;

 private:
  std::vector<Tensor> parts_;
};

class PrdcMetric : public FeatureMetric {
 public:
  using FeatureMetric::FeatureMetric;
  std::map<std::string, Value> result() const override {
    if (empty()) return {};
    const Tensor s = samples();
    // Equal numbers on both sides: the balls' radii, and with them recall, depend on the density of each set.
    const Tensor r = real_.slice(0, 0, std::min(real_.size(0), s.size(0)));
    const Prdc p = prdc(r, s, kNeighbours);
    const std::string k = fmt::format("k={}", kNeighbours);
    const int64_t n = s.size(0), m = r.size(0);
    const auto counted = [](double value, int64_t of) {
      return share(static_cast<int64_t>(std::lround(value * static_cast<double>(of))), of);
    };
    return {{metric_name("precision", encoder_, k), counted(p.precision, n)},
            {metric_name("recall", encoder_, k), counted(p.recall, m)},
            {metric_name("density", encoder_, k), {.value = p.density, .n = n}},
            {metric_name("coverage", encoder_, k), counted(p.coverage, m)}};
  }
};

class KernelMetric : public FeatureMetric {
 public:
  using FeatureMetric::FeatureMetric;
  std::map<std::string, Value> result() const override {
    if (empty()) return {};
    const Tensor s = samples();
    return {{metric_name("KD", encoder_), {.value = kernel_distance(real_, s), .n = s.size(0)}}};
  }
};

std::unique_ptr<Metric> make_fd(const MetricContext& c) {
  need_reference(c, "fd");
  return std::make_unique<DistanceMetric>(metric_name("FD", c.judge->identity()), *c.reference,
                                          [](const EvalBatch& batch) { return batch.features; });
}

template <class M>
std::unique_ptr<Metric> make(const MetricContext& c) {
  need_reference(c, "kd or prdc");
  return std::make_unique<M>(c);
}

}  // namespace

std::span<const MetricKind> metric_kinds() {
  static const MetricKind table[] = {
      {"fd", "Frechet distance to real images in the judge's features", true, make_fd},
      {"kd", "kernel distance (KID's estimator) in the judge's features", true, make<KernelMetric>},
      {"prdc", "precision, recall, density, coverage in the judge's features", true, make<PrdcMetric>},
      {"class_accuracy", "share of images the judge assigns to the caption's class", false, make_class_accuracy},
      {"accuracy_by_class", "class_accuracy of each class apart", false, make_accuracy_by_class},
      {"attribute_accuracy", "share of named attributes that the pixels show", false, make_attribute_accuracy},
      {"clip_score", "mean of max(100 cos, 0) between image and caption in the small CLIP", false, make_clip_score},
      {"band_power", "power by spatial frequency against real images'", false, make_band_power},
      {"cut_rate", "share of images whose foreground reaches the border", false, make_cut_rate},
      {"nearest_training", "share of images nearer to a training image than 5 % of unseen real ones are", false,
       make_nearest_training},
      {"psnr", "PSNR of reconstructions", false, make_psnr},
      {"ssim", "SSIM of reconstructions", false, make_ssim},
      {"perceptual", "LPIPS of reconstructions with VGG16, or that distance in another network's stages", false,
       make_perceptual},
      {"rfd", "Frechet distance of reconstructions to their originals in the judge's features", true,
       make_reconstruction_fd},
      {"patch_fd", "Frechet distance of non-overlapping patches in the features of the patch judge", true, make_patch_fd},
      {"fd_teacher", "Frechet distance to the teacher's samples of the same captions, in the judge's features", true,
       make_teacher_fd},
      {"diversity", "distance between the images of one caption in the judge's features", false, make_diversity},
      {"in_loop_fd", "Frechet distance in a discriminator's own features: no judgement, printed apart", true,
       make_in_loop_fd},
  };
  return table;
}

}  // namespace fewstep::eval
