#include "eval/student_metrics.h"

#include "eval/distance_metric.h"
#include "eval/diversity.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {

namespace {

class DiversityMetric : public Metric {
 public:
  explicit DiversityMetric(const EncoderIdentity& judge) : name_(metric_name("diversity", judge)) {}
  void add(const EvalBatch& batch) override {
    features_.push_back(batch.features);
    for (const std::string& caption : batch.captions)
      groups_.push_back(ids_.emplace(caption, static_cast<int64_t>(ids_.size())).first->second);
  }
  std::map<std::string, Value> result() const override {
    if (ids_.size() == groups_.size()) {
      log::warn("diversity: none of {} captions occurs twice in this set; it has no intra-prompt diversity", ids_.size());
      return {};
    }
    return {{name_, intra_prompt_diversity(at::cat(features_), groups_).distance}};
  }

 private:
  std::string name_;
  std::vector<Tensor> features_;
  std::map<std::string, int64_t> ids_;
  std::vector<int64_t> groups_;
};

}  // namespace

std::unique_ptr<Metric> make_patch_fd(const MetricContext& c) {
  if (!c.patch || !c.patch_reference)
    fail<ConfigError>("metric patch_fd: set 'patch_judge' to the run of an encoder that was trained on crops");
  return std::make_unique<DistanceMetric>(
      metric_name("patch_FD", c.patch->identity(), fmt::format("grid={}", c.patch_side)), *c.patch_reference,
      [encoder = c.patch](const EvalBatch& batch) { return encoder->features(batch.images); });
}

std::unique_ptr<Metric> make_teacher_fd(const MetricContext& c) {
  if (!c.judge || !c.teacher_reference)
    fail<ConfigError>("metric fd_teacher: set 'teacher.model' to the teacher's run or model folder, and 'judge' to an encoder");
  return std::make_unique<DistanceMetric>(metric_name("FD_teacher", c.judge->identity()), *c.teacher_reference,
                                          [](const EvalBatch& batch) { return batch.features; });
}

std::unique_ptr<Metric> make_diversity(const MetricContext& c) {
  if (!c.judge) fail<ConfigError>("metric diversity: set 'judge' to an encoder's run or model folder");
  return std::make_unique<DiversityMetric>(c.judge->identity());
}

}  // namespace fewstep::eval
