#include "eval/accuracy.h"

#include "src/base/error.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {

Value share(int64_t correct, int64_t n) {
  if (n == 0) return {};
  const double p = static_cast<double>(correct) / static_cast<double>(n);
  // Half width of Wilson's interval: not zero at 0 and 1.
  const double z = 1.96, m = static_cast<double>(n);
  return {.value = p, .ci95 = z * std::sqrt(p * (1 - p) / m + z * z / (4 * m * m)) / (1 + z * z / m), .n = n};
}

Value mean_with_interval(const std::vector<double>& values) {
  const double n = static_cast<double>(values.size());
  if (values.empty()) return {};
  double mean = 0, squares = 0;
  for (double v : values) mean += v / n;
  for (double v : values) squares += (v - mean) * (v - mean);
  return {.value = mean,
          .ci95 = values.size() > 1 ? 1.96 * std::sqrt(squares / (n - 1) / n) : 0,
          .n = static_cast<int64_t>(values.size())};
}

Value mean_with_interval(const Tensor& values) {
  const Tensor v = values.to(at::kCPU, at::kDouble).contiguous();
  return mean_with_interval(std::vector<double>(v.const_data_ptr<double>(), v.const_data_ptr<double>() + v.numel()));
}

namespace {

class ClassAccuracy : public Metric {
 public:
  // `class_names`: empty for one number over all classes.
  explicit ClassAccuracy(EncoderIdentity encoder, std::vector<std::string> class_names = {})
      : encoder_(std::move(encoder)), class_names_(std::move(class_names)) {}
  void add(const EvalBatch& batch) override {
    if (!batch.logits.defined())
      fail<ConfigError>(
          "metric class_accuracy: the judge has no class head; use a classifier_encoder or leave the metric out");
    if (!batch.labels.defined()) return;
    const Tensor correct = batch.logits.argmax(1).eq(batch.labels);
    for (int64_t i = 0; i < batch.labels.size(0); ++i)
      if (const int64_t label = batch.labels[i].item<int64_t>(); label >= 0) {
        auto& [right, n] = counts_[label];
        right += correct[i].item<bool>(), ++n;
      }
  }
  std::map<std::string, Value> result() const override {
    std::map<std::string, Value> values;
    int64_t right = 0, n = 0;
    for (const auto& [label, counts] : counts_) {
      right += counts.first, n += counts.second;
      if (static_cast<size_t>(label) < class_names_.size())
        values[metric_name("class_accuracy", encoder_, "class=" + class_names_[static_cast<size_t>(label)])] =
            share(counts.first, counts.second);
    }
    if (class_names_.empty() && n > 0) values[metric_name("class_accuracy", encoder_)] = share(right, n);
    return values;
  }

 private:
  EncoderIdentity encoder_;
  std::vector<std::string> class_names_;
  std::map<int64_t, std::pair<int64_t, int64_t>> counts_;  // label -> correct, all
};

// Needs no network: the measurement that wrote the training captions is repeated on the sample.
class AttributeAccuracy : public Metric {
 public:
  explicit AttributeAccuracy(const AttributeThresholds& thresholds) : thresholds_(thresholds) {}
  void add(const EvalBatch& batch) override {
    for (int64_t i = 0; i < batch.images.size(0); ++i) {
      const auto asked = parse_caption(batch.captions[static_cast<size_t>(i)]);
      if (!asked || asked->named.empty()) continue;  // nothing that could be checked
      const Attributes shown = measure_attributes(batch.images[i], asked->label, thresholds_);
      Sample sample;
      for (const auto& [attribute, word] : asked->named) {
        const auto it = shown.find(attribute);
        const bool correct = it != shown.end() && it->second == word;
        auto& [right, n] = per_attribute_[attribute];
        right += correct, ++n;
        sample.correct += correct, ++sample.asked;
      }
      samples_.push_back(sample);
    }
  }
  std::map<std::string, Value> result() const override {
    std::map<std::string, Value> values;
    if (samples_.empty()) return values;
    for (const auto& [attribute, counts] : per_attribute_)
      values[fmt::format("attribute_accuracy[{}]", attribute)] = share(counts.first, counts.second);
    int64_t correct = 0, asked = 0;
    for (const Sample& s : samples_) correct += s.correct, asked += s.asked;
    // One image's attributes are not independent: the interval is that of a ratio over images (Cochran 1977, eq. 2.39).
    const double ratio = static_cast<double>(correct) / static_cast<double>(asked);
    double squares = 0;
    for (const Sample& s : samples_) {
      const double residual = static_cast<double>(s.correct) - ratio * static_cast<double>(s.asked);
      squares += residual * residual;
    }
    values["attribute_accuracy"] = {
        .value = ratio, .ci95 = 1.96 * std::sqrt(squares) / static_cast<double>(asked), .n = asked};
    return values;
  }

 private:
  struct Sample {
    int64_t correct = 0, asked = 0;
  };
  AttributeThresholds thresholds_;
  std::map<std::string, std::pair<int64_t, int64_t>> per_attribute_;  // correct, asked
  std::vector<Sample> samples_;
};

class ClipScore : public Metric {
 public:
  explicit ClipScore(const TextImageEncoder& clip) : clip_(clip) {}
  void add(const EvalBatch& batch) override {
    images_.push_back(clip_.image_embeddings(batch.images));
    texts_.push_back(clip_.text_embeddings(batch.captions));
    captions_.insert(captions_.end(), batch.captions.begin(), batch.captions.end());
  }
  std::map<std::string, Value> result() const override {
    if (images_.empty()) return {};
    const Tensor images = at::cat(images_), texts = at::cat(texts_);
    Value value = mean_with_interval(scores(images, texts));
    const int64_t N = images.size(0);
    if (N > 1) {
      // A fixed shift pairs every image with another one's caption; neighbours may share a class, half the set does
      // not.
      const Value floor = mean_with_interval(scores(images, at::roll(texts, N / 2, 0)));
      value.floor = floor.value;
    }
    return {{metric_name("CLIPScore", clip_.identity()), value}};
  }

 private:
  static Tensor scores(const Tensor& images, const Tensor& texts) {  // float64 [N]
    const Tensor s = ((images * texts).sum(1).to(at::kDouble) * 100).clamp_min(0);
    if (!at::isfinite(s).all().item<bool>()) fail<NumericError>("CLIPScore: an embedding is not finite");
    return s;
  }
  const TextImageEncoder& clip_;
  std::vector<Tensor> images_, texts_;
  std::vector<std::string> captions_;
};

}  // namespace

std::unique_ptr<Metric> make_class_accuracy(const MetricContext& c) {
  if (!c.judge) fail<ConfigError>("metric class_accuracy: set 'judge' to a classifier encoder's run or model folder");
  return std::make_unique<ClassAccuracy>(c.judge->identity());
}
std::unique_ptr<Metric> make_accuracy_by_class(const MetricContext& c) {
  if (!c.judge) fail<ConfigError>("metric accuracy_by_class: set 'judge' to a classifier encoder's run or model folder");
  if (c.class_names.empty()) fail<ConfigError>("metric accuracy_by_class: 'data' names no classes; leave the metric out");
  return std::make_unique<ClassAccuracy>(c.judge->identity(), c.class_names);
}
std::unique_ptr<Metric> make_attribute_accuracy(const MetricContext& c) {
  if (!c.thresholds)
    fail<ConfigError>(
        "metric attribute_accuracy: 'data' has no measured attributes (fashion_mnist has); leave the metric out");
  return std::make_unique<AttributeAccuracy>(*c.thresholds);
}
std::unique_ptr<Metric> make_clip_score(const MetricContext& c) {
  if (!c.clip) fail<ConfigError>("metric clip_score: set 'clip' to a contrastive run or model folder");
  return std::make_unique<ClipScore>(*c.clip);
}

}  // namespace fewstep::eval
