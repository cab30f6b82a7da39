#include "trainers/dino_objective.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "src/base/error.h"
#include "src/base/log.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep {

Tensor teacher_probabilities(const Tensor& teacher, const Tensor& centre, double temperature) {
  return at::softmax((teacher - centre) / temperature, -1);
}

Tensor dino_loss(const Tensor& student, const Tensor& teacher, double student_temperature) {
  const auto [V, B, K] = dims<3>(student);
  expect_shape(teacher, {2, B, K}, "the teacher's outputs");
  FEW_CHECK(V >= 2, "DINO: {} student views, at least the two global ones are needed", V);
  const Tensor log_p = at::log_softmax(student / student_temperature, -1);
  const Tensor all = log_p.sum(0);  // [B, K]: the sum over s, less s = t
  const Tensor sum = teacher[0] * (all - log_p[0]) + teacher[1] * (all - log_p[1]);
  return sum.sum(-1) / static_cast<double>(-2 * (V - 1));
}

double teacher_momentum(double start, int64_t step, int64_t steps) {
  const double t = std::clamp(static_cast<double>(step) / static_cast<double>(std::max<int64_t>(steps, 1)), 0.0, 1.0);
  return 1 - (1 - start) * (1 + std::cos(std::numbers::pi * t)) / 2;
}

double teacher_temperature(double first, double last, int64_t warmup, int64_t step) {
  if (step >= warmup) return last;
  return first + (last - first) * static_cast<double>(step) / static_cast<double>(warmup);
}

namespace {
Tensor entropy_of(const Tensor& p) { return -at::xlogy(p, p).sum(-1); }
}  // namespace

TeacherCentre::TeacherCentre(int64_t prototypes, double momentum, at::TensorOptions options, dist::World& world)
    : centre_(at::zeros({prototypes}, options)), sums_(at::zeros({2 * prototypes + 2}, options.dtype(at::kDouble))),
      momentum_(momentum), world_(world) {
  FEW_CHECK(momentum < 1, "a centre of momentum {} never moves", momentum);
}

void TeacherCentre::add(const Tensor& logits, const Tensor& probabilities) {
  const NoGrad no_grad;
  const int64_t K = centre_.size(0);
  const Tensor p = probabilities.to(at::kDouble);
  const Tensor rows = at::full({1}, static_cast<double>(logits.numel() / K), sums_.options());
  sums_.add_(at::cat({logits.to(at::kDouble).sum({0, 1}), p.sum({0, 1}), entropy_of(p).sum().view({1}), rows}));
}

TeacherSpread TeacherCentre::update(bool move) {
  const NoGrad no_grad;
  const int64_t K = centre_.size(0);
  world_.all_reduce_sum(sums_);
  const Tensor mean = sums_ / sums_[2 * K + 1];
  if (move) {
    const double share = (1 - momentum_) / (1 - std::pow(momentum_, static_cast<double>(++updates_)));
    centre_.mul_(1 - share).add_(mean.narrow(0, 0, K), share);
  }
  TeacherSpread spread;
  spread.entropy = mean[2 * K].item<double>();
  spread.mean_entropy = entropy_of(mean.narrow(0, K, K)).item<double>();
  spread.divergence = spread.mean_entropy - spread.entropy;
  sums_.zero_();
  return spread;
}

TensorMap TeacherCentre::state() const { return {{"centre", centre_}, {"centre_updates", at::full({1}, updates_, at::kLong)}}; }

void TeacherCentre::load_state(const TensorMap& tensors) {
  const NoGrad no_grad;
  const auto centre = tensors.find("centre"), updates = tensors.find("centre_updates");
  if (centre == tensors.end() || updates == tensors.end())
    fail<DataError>("the checkpoint's dino.safetensors lacks 'centre' or 'centre_updates'");
  if (centre->second.sizes() != centre_.sizes())
    fail<DataError>("the checkpoint's centre has {} values, the head has {} prototypes", centre->second.numel(), centre_.numel());
  centre_.copy_(centre->second);
  updates_ = updates->second.item<int64_t>();
}

void describe(config::Visitor& v, CollapseConfig& c) {
  static constexpr config::Choice kActions[] = {{"warn", 0}, {"stop", 1}};
  v.field("limit", c.limit, "collapsed below this share of log(prototypes) of the teacher's mean KL(output || mean output)", config::kUnit);
  v.field("after", c.after, "steps before the watch begins", config::kNonNegative);
  v.field("patience", c.patience, "steps in a row below the limit that count as collapse", config::kAtLeastOne);
  v.field("action", c.action, "what follows", kActions);
}

bool CollapseWatch::see(const TeacherSpread& spread, int64_t prototypes, int64_t step) {
  const double log_k = std::log(static_cast<double>(prototypes));
  const bool low = step >= config_.after && spread.divergence < config_.limit * log_k;
  count_ = low ? count_ + 1 : 0;
  if (count_ < config_.patience) return false;
  const std::string text = fmt::format(
      "DINO has collapsed: the teacher's outputs differ from their mean by {:.4f} nats (limit {:.4f}) for {} steps: {} (entropy of an "
      "output {:.3f}, of their mean {:.3f}, largest {:.3f}); lower optimizer.lr, raise centre_momentum or teacher_temperature",
      spread.divergence, config_.limit * log_k, count_,
      spread.mean_entropy < 0.5 * log_k ? "all have one peak" : "all are uniform", spread.entropy, spread.mean_entropy, log_k);
  if (config_.action == CollapseAction::stop) fail<NumericError>("{}", text);
  if (count_ == config_.patience) log::warn("step {}: {}", step, text);
  return true;
}

Tensor nearest_neighbour_classes(const Tensor& queries, const Tensor& bank, const Tensor& labels, int64_t k, int64_t classes) {
  const NoGrad no_grad;
  constexpr double kTemperature = 0.07;
  const auto unit = [](const Tensor& x) { return x / x.norm(2, {1}, /*keepdim=*/true).clamp_min(1e-12); };
  const auto [cosine, index] = at::topk(at::matmul(unit(queries), unit(bank).t()), std::min(k, bank.size(0)), 1);
  // Relative to the nearest: the vote is the same, and nothing overflows.
  const Tensor weights = ((cosine - cosine.narrow(1, 0, 1)) / kTemperature).exp();
  const Tensor near = labels.index_select(0, index.flatten()).view_as(index);
  return at::zeros({queries.size(0), classes}, weights.options()).scatter_add_(1, near, weights).argmax(1);
}

}  // namespace fewstep
