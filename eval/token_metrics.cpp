#include "eval/token_metrics.h"

#include "eval/accuracy.h"
#include "eval/draft_stability.h"
#include "eval/token_classifier.h"
#include "src/base/error.h"
#include "src/base/progress.h"
#include "src/base/signals.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace {

constexpr int64_t kLikelihoodBatch = 32;  // sequences whose logits are in memory at once, guidance doubles them
constexpr int64_t kStabilityImages = 64;

struct ImageLikelihood {
  std::vector<double> nll;  // of each image, the mean over its free tokens
  int64_t outside = 0, tokens = 0;
};

ImageLikelihood image_likelihood(const TokenContext& c, const Tensor& tokens, const std::string& label) {
  const int64_t N = tokens.size(0);
  const double free = static_cast<double>(c.pipeline.layout().forced_codes().lt(0).sum().item<int64_t>());
  ImageLikelihood out;
  Progress progress(label, N);
  for (int64_t i = 0; i < N; i += kLikelihoodBatch) {
    if (signals::stop_requested())
      throw Interrupted("evaluation stopped while measuring likelihoods; nothing was written");
    const int64_t end = std::min(i + kLikelihoodBatch, N);
    const std::vector<std::string> captions(c.samples.captions.begin() + i, c.samples.captions.begin() + end);
    const auto likelihood = c.pipeline.likelihood(captions, tokens.slice(0, i, end), c.config.generate);
    const Tensor nll = (likelihood.nll.sum(1) / free).to(at::kCPU, at::kDouble).contiguous();
    if (!at::isfinite(nll).all().item<bool>())
      fail<NumericError>("token_nll: not finite in samples {} to {}", i, end - 1);
    out.nll.insert(out.nll.end(), nll.const_data_ptr<double>(), nll.const_data_ptr<double>() + nll.numel());
    out.outside += likelihood.outside.sum().item<int64_t>();
    out.tokens += static_cast<int64_t>(free) * (end - i);
    progress.update(end);
  }
  progress.finish();
  return out;
}

std::map<std::string, Value> likelihood_values(const TokenContext& c) {
  const ImageLikelihood own = image_likelihood(c, c.samples.tokens, "likelihood");
  std::map<std::string, Value> values = {{"token_nll", mean_with_interval(own.nll)}};
  values["token_outside"] = {.value = static_cast<double>(own.outside) / static_cast<double>(own.tokens),
                             .n = own.tokens};
  if (c.baseline) {
    const ImageLikelihood other = image_likelihood(c, c.baseline->tokens, "likelihood of the baseline");
    const std::vector<double> matched(own.nll.begin(), own.nll.begin() + static_cast<std::ptrdiff_t>(other.nll.size()));
    values["token_nll_difference"] = relative_difference(matched, other.nll);
  }
  return values;
}

std::map<std::string, Value> stability_values(const TokenContext& c) {
  const int64_t n = std::min<int64_t>(kStabilityImages, static_cast<int64_t>(c.samples.captions.size()));
  const std::vector<std::string> captions(c.samples.captions.begin(), c.samples.captions.begin() + n);
  std::vector<Tensor> history;
  const auto observe = [&](int64_t, const Tensor& codes, const Tensor&) { history.push_back(codes.to(at::kCPU)); };
  const auto decoded = c.pipeline.decode(captions, static_cast<uint64_t>(c.config.seed), 0, c.config.generate, observe);
  DraftStability stability;
  stability.add(history, decoded.committed_at, c.config.generate.decoder.window);
  return stability.result();
}

std::map<std::string, Value> noise_values(const TokenContext& c) {
  const models::EmbeddingNoise& noise = c.pipeline.noise();
  const models::NoiseSchedule schedule = noise.config().schedule;
  const double path = models::alpha_at(schedule, 0.5) / models::sigma_at(schedule, 0.5);
  const Tensor codes = c.pipeline.model().table().to(at::kCPU, at::kDouble);
  const Tensor ratio = path * codes.std(0, false) / noise.deviation().to(at::kCPU, at::kDouble);
  const int64_t n = ratio.numel();
  return {{"noise_snr[min]", {.value = ratio.min().item<double>(), .n = n}},
          {"noise_snr[median]", {.value = ratio.median().item<double>(), .n = n}},
          {"noise_snr[max]", {.value = ratio.max().item<double>(), .n = n}}};
}

std::map<std::string, Value> paired_values(const TokenContext& c) {
  const int64_t n = c.baseline->tokens.size(0);
  const models::SequenceLayout& layout = c.pipeline.layout();
  const TokenGrid grid{.codes = layout.image_vocab(),
                       .rows = layout.grid_height,
                       .columns = layout.row_length(),
                       .table = c.pipeline.model().table()};
  std::map<std::string, Value> values;
  values["token_auc"] =
      token_auc(c.own.tokens.slice(0, 0, n), c.baseline->tokens, grid, {.seed = static_cast<uint64_t>(c.config.seed)});
  if (!c.reference || !c.own.features.defined() || !c.baseline->features.defined()) return values;
  if (c.own.judge != c.baseline->judge)
    fail<ConfigError>("paired_with: features of {} cannot be compared with those of {}; use one judge",
                      c.baseline->judge, c.own.judge);
  // "FD[judge@1a2b3c4d]" -> "FD_difference[judge@1a2b3c4d]"
  values["FD_difference" + c.own.judge.substr(c.own.judge.find('['))] =
      feature_difference(*c.reference, c.own.features.slice(0, 0, n), c.baseline->features);
  return values;
}

}  // namespace

std::span<const TokenMetricKind> token_metric_kinds() {
  static constexpr TokenMetricKind table[] = {
      {"token_nll", "negative log-likelihood of the samples' tokens under the model's own law"},
      {"draft_stability", "share of drafts a pass leaves as they were, by age (decoders with a window)"},
      {"noise_snr", "signal to noise of the embedding table's dimensions at half noise (models fine-tuned for sjd2)"},
  };
  return table;
}

bool is_token_metric(std::string_view name) {
  const auto table = token_metric_kinds();
  return std::any_of(table.begin(), table.end(), [&](const TokenMetricKind& k) { return k.name == name; });
}

std::map<std::string, Value> decoding_values(const decoding::DecodingStatistics& s, bool lossy) {
  const int64_t n = s.images();
  std::map<std::string, Value> values;
  values["step_compression"] = {
      .value = s.compression(), .ci95 = s.compression_interval(), .n = n, .note = lossy ? "lossy" : ""};
  values["step_compression[ratio of means]"] = {.value = s.compression_of_means(), .n = n};
  if (std::isfinite(s.foreground_compression()))
    values["step_compression[foreground]"] = {.value = s.foreground_compression(), .n = n};
  if (s.compression_without_structural() != s.compression())
    values["step_compression[without structural]"] = {.value = s.compression_without_structural(), .n = n};
  values["passes"] = {.value = s.passes(), .n = n};
  values["ms_per_pass"] = {.value = 1e3 * s.seconds_per_pass(), .n = n};
  values["tokens_per_second"] = {.value = s.tokens_per_second(), .n = n};
  values["decoder_overhead"] = {.value = s.overhead(), .n = n};
  return values;
}

std::map<std::string, Value> token_values(const TokenContext& c) {
  const auto wanted = [&](std::string_view name) {
    return std::find(c.config.metrics.begin(), c.config.metrics.end(), name) != c.config.metrics.end();
  };
  std::map<std::string, Value> values;
  if (wanted("token_nll")) values.merge(likelihood_values(c));
  if (wanted("draft_stability")) values.merge(stability_values(c));
  if (wanted("noise_snr")) values.merge(noise_values(c));
  if (!c.baseline) return values;
  values.merge(paired_values(c));
  if (c.baseline->model != c.own.model)
    for (auto& [name, value] : values)
      if (name == "token_nll_difference" || name == "token_auc" || name.starts_with("FD_difference"))
        value.note = "to another model";
  return values;
}

Value relative_difference(const std::vector<double>& a, const std::vector<double>& b) {
  FEW_CHECK(a.size() == b.size() && !a.empty(), "relative_difference of {} and {} numbers", a.size(), b.size());
  const double n = static_cast<double>(a.size());
  double mean_a = 0, mean_b = 0, squares = 0;
  for (size_t i = 0; i < a.size(); ++i) mean_a += a[i] / n, mean_b += b[i] / n;
  for (size_t i = 0; i < a.size(); ++i) {
    const double residual = a[i] - mean_a / mean_b * b[i];
    squares += residual * residual;
  }
  Value value{.value = mean_a / mean_b - 1, .n = static_cast<int64_t>(a.size())};
  if (a.size() > 1) value.ci95 = 1.96 * std::sqrt(squares / (n - 1) / n) / std::abs(mean_b);
  return value;
}

Value feature_difference(const FrechetReference& reference, const Tensor& own, const Tensor& baseline) {
  const int64_t groups = reference.dim() > 512 ? 10 : 20;  // each costs two D x D eigen-solvers
  GroupedStatistics a(groups), b(groups);
  a.add(own), b.add(baseline);
  return frechet_difference(reference, a, b);
}

}  // namespace fewstep::eval
