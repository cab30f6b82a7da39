#include "trainers/dmd2_monitors.h"

#include <cmath>

#include "src/base/error.h"
#include "src/base/log.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace {

constexpr double kWatchMargin = 0.1;
constexpr double kNoDistance = 1e-8;  // samples of one prompt that are one picture, from the start
constexpr const char* kWatchPrefix = "watch.";
constexpr const char* kFirstDistance = "first_distance";

bool says_accuracy(const std::string& name) { return name.find("accuracy") != std::string::npos; }

WatchLimit watch_limit(const Dmd2MonitorConfig& c, const std::string& name) {
  if (name == "score_gap") return {.limit = c.max_score_gap};
  if (name == "critic_lag") return {.limit = c.max_critic_lag};
  if (name == "gradient_ratio") return {.limit = c.min_gradient_ratio, .upper = false};
  if (name == "diversity") return {.limit = c.min_diversity, .upper = false, .momentum = 0.0};  // of fixed prompts and noise: hardly any noise of its own
  if (says_accuracy(name)) return {.limit = c.max_accuracy};
  return {};
}

std::string_view remedy(const std::string& name) {
  if (name == "score_gap") return "the student is far from the teacher: lower optimizer.lr, warm-start it, or raise critic.updates";
  if (name == "critic_lag")
    return "the fake score is no better at the student's samples than the teacher: raise critic.updates or critic.optimizer.lr, or align it";
  if (name == "gradient_ratio") return "the GAN outweighs the teacher's score: lower gan.weight";
  if (name == "diversity") return "the student is collapsing: raise critic.updates or score.max, lower optimizer.lr or gan.weight, or warm-start it";
  return "the discriminator has won: lower gan.optimizer.lr, or augment more";
}

void report_crossing(Crossing crossing, const std::string& name, const Watch& watch, const WatchLimit& limit, int64_t iteration) {
  if (crossing == Crossing::none || log::rank() != 0) return;
  if (crossing == Crossing::out)
    log::warn("iteration {}: {} is {:.3g}, {} its limit {:.3g}: {}", iteration, name, watch.smoothed(), limit.upper ? "above" : "below",
              limit.limit, remedy(name));
  else
    log::info("iteration {}: {} is {:.3g}, within its limit {:.3g} again", iteration, name, watch.smoothed(), limit.limit);
}

}  // namespace

void describe(config::Visitor& v, Dmd2MonitorConfig& c) {
  v.field("every", c.every, "cycles of turns between two looks", config::kAtLeastOne);
  v.field("bins", c.bins, "slices of the noise axis whose score_gap is told apart", config::kAtLeastOne);
  v.field("max_score_gap", c.max_score_gap, "mean |fake - real score's x0| that warns; 0: never", config::kNonNegative);
  v.field("max_critic_lag", c.max_critic_lag, "fake score's loss over the teacher's, on the student's samples, that warns; 0: never", config::kNonNegative);
  v.field("min_gradient_ratio", c.min_gradient_ratio, "norm of DMD's gradient at x0 over the GAN's that warns; 0: never", config::kNonNegative);
  v.field("max_accuracy", c.max_accuracy, "accuracy of the discriminator that warns; 0: never", config::kUnit);
  v.field("diversity_every", c.diversity_every, "iterations between two measures of the diversity; 0: never", config::kNonNegative);
  v.field("prompts", c.prompts, "of the held-out split whose diversity is measured", config::kAtLeastOne);
  v.field("samples", c.samples, "of each of these prompts", {2});
  v.field("min_diversity", c.min_diversity, "distance between samples of a prompt, of what it was at the start, that counts as a collapse; 0: none", config::kUnit);
}

Crossing Watch::see(double value) {
  if (limit_.limit <= 0.0) return Crossing::none;
  smoothed_ = seen_ ? limit_.momentum * smoothed_ + (1.0 - limit_.momentum) * value : value;
  seen_ = true;
  const double margin = (out_ ? kWatchMargin : 0.0) * limit_.limit;
  const bool now = limit_.upper ? smoothed_ > limit_.limit - margin : smoothed_ < limit_.limit + margin;
  if (now == out_) return Crossing::none;
  out_ = now;
  return out_ ? Crossing::out : Crossing::back;
}

Tensor Watch::state() const { return at::tensor({smoothed_, seen_ ? 1.0 : 0.0, out_ ? 1.0 : 0.0}, at::kDouble); }

void Watch::load_state(const Tensor& state) {
  if (state.numel() != 3) fail<DataError>("the checkpoint's state of a watch has {} numbers, not 3", state.numel());
  const Tensor values = state.to(at::kCPU, at::kDouble).contiguous();
  const double* v = values.const_data_ptr<double>();
  smoothed_ = v[0], seen_ = v[1] != 0.0, out_ = v[2] != 0.0;
}

Dmd2Monitors::Dmd2Monitors(const Dmd2MonitorConfig& config) : config_(config) {}

std::map<std::string, double> Dmd2Monitors::look(const std::map<std::string, double>& means, int64_t iteration) {
  std::map<std::string, double> derived;
  const auto quotient = [&](const char* name, const char* above, const char* below) {
    const auto a = means.find(above), b = means.find(below);
    if (a != means.end() && b != means.end() && b->second > 0.0) derived[name] = a->second / b->second;
  };
  quotient("critic_lag", "critic_loss", "teacher_loss");
  quotient("gradient_ratio", "gradient_dmd", "gradient_gan");
  if (const auto distance = means.find("sample_distance"); distance != means.end()) {
    if (first_distance_ < 0.0) first_distance_ = distance->second;
    derived["diversity"] = first_distance_ > kNoDistance ? distance->second / first_distance_ : 1.0;
  }
  const auto see = [&](const std::string& name, double value) {
    const WatchLimit limit = watch_limit(config_, name);
    if (limit.limit <= 0.0) return;
    Watch& watch = watches_.try_emplace(name, limit).first->second;
    report_crossing(watch.see(value), name, watch, limit, iteration);
  };
  for (const auto& [name, value] : means) see(name, value);
  for (const auto& [name, value] : derived) see(name, value);
  if (derived.contains("diversity")) derived["collapsed"] = out("diversity") ? 1.0 : 0.0;
  return derived;
}

bool Dmd2Monitors::out(const std::string& name) const {
  const auto watch = watches_.find(name);
  return watch != watches_.end() && watch->second.out();
}

TensorMap Dmd2Monitors::state() const {
  TensorMap out = {{kFirstDistance, at::full({1}, first_distance_, at::kDouble)}};
  for (const auto& [name, watch] : watches_) out.emplace(kWatchPrefix + name, watch.state());
  return out;
}

void Dmd2Monitors::load_state(const TensorMap& state) {
  const auto first = state.find(kFirstDistance);
  if (first == state.end()) fail<DataError>("the checkpoint's dmd2.safetensors lacks '{}'", kFirstDistance);
  first_distance_ = first->second.item<double>();
  watches_.clear();
  for (const auto& [key, tensor] : state) {
    if (!key.starts_with(kWatchPrefix)) continue;
    const std::string name = key.substr(std::string_view(kWatchPrefix).size());
    const WatchLimit limit = watch_limit(config_, name);
    if (limit.limit > 0.0) watches_.try_emplace(name, limit).first->second.load_state(tensor);
  }
}

std::vector<std::string> score_gap_names(int64_t bins) {
  std::vector<std::string> names;
  const int decimals = bins <= 10 && 10 % bins == 0 ? 1 : 2;
  for (int64_t i = 1; i <= bins; ++i)
    names.push_back(fmt::format("score_gap[t<{:.{}f}]", static_cast<double>(i) / static_cast<double>(bins), decimals));
  return names;
}

Tensor distance_within(const Tensor& samples, int64_t per_prompt) {
  FEW_CHECK(per_prompt >= 2 && samples.size(0) % per_prompt == 0, "{} samples, {} a prompt", samples.size(0), per_prompt);
  const NoGrad no_grad;
  const int64_t M = per_prompt, G = samples.size(0) / M;
  const Tensor x = samples.to(at::kDouble).reshape({G, M, -1});
  const Tensor difference = x.unsqueeze(2) - x.unsqueeze(1);             // [G, M, M, D]
  const Tensor distance = difference.square().mean(-1).sqrt();          // [G, M, M], zero on the diagonal
  return distance.sum({1, 2}) / static_cast<double>(M * (M - 1));
}

}  // namespace fewstep
