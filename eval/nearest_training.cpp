#include "eval/nearest_training.h"

#include "eval/accuracy.h"
#include "src/base/error.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {

Tensor nearest_distances(const Tensor& images, const Tensor& training, int64_t block) {
  FEW_CHECK(images.dim() == 4 && training.dim() == 4 && images[0].sizes() == training[0].sizes(),
            "nearest_distances: images {} and training images {} must have one size", c10::str(images.sizes()),
            c10::str(training.sizes()));
  const Tensor known = training.flatten(1).to(at::kFloat);  // [M, P]
  const Tensor squares = known.square().sum(1);
  const auto pixels = static_cast<double>(known.size(1));
  std::vector<Tensor> out;
  for (const Tensor& part : images.split(block)) {
    const Tensor x = part.flatten(1).to(at::kFloat);
    // |x - k|^2 = |x|^2 + |k|^2 - 2 x k: whole numbers below 2^24 at 32 x 32 grey, rounding of a grey level beyond.
    const Tensor distance = at::addmm(squares.unsqueeze(0), x, known.t(), 1.0, -2.0).amin(1) + x.square().sum(1);
    out.push_back((distance.clamp_min(0) / pixels).sqrt());
  }
  return at::cat(out);
}

namespace {

constexpr double kNearShare = 0.05;

class NearestTraining : public Metric {
 public:
  NearestTraining(const Tensor& reference, const Tensor& training)
      : training_(training), near_(nearest_distances(reference, training).quantile(kNearShare).item<double>()) {}
  void add(const EvalBatch& batch) override { distances_.push_back(nearest_distances(batch.images, training_)); }
  std::map<std::string, Value> result() const override {
    if (distances_.empty()) return {};
    const Tensor d = at::cat(distances_);
    return {{"nearest_training", share(d.lt(near_).sum().item<int64_t>(), d.size(0))},
            {"nearest_distance", {.value = d.median().item<double>(), .n = d.size(0)}}};
  }

 private:
  Tensor training_;
  double near_;
  std::vector<Tensor> distances_;
};

}  // namespace

std::unique_ptr<Metric> make_nearest_training(const MetricContext& c) {
  if (!c.reference_images.defined() || !c.training_images)
    fail<ConfigError>("metric nearest_training: set 'data' to a data set with a train split");
  return std::make_unique<NearestTraining>(c.reference_images, c.training_images());
}

}  // namespace fewstep::eval
