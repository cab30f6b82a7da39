// Distribution matching against scores in closed form. The data is a mixture of Gaussians in the plane under flow's x_t =
// (1 - t) x0 + t eps; the student a mixture of affine maps x = mu_k + L_k eta, so that the teacher's and the critic's x0 are
// exact, and what is left to be wrong is the gradient.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "src/diffusion/distribution_matching.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep::diffusion {
namespace {

constexpr int64_t kComponents = 16, kModes = 8;
constexpr double kRadius = 5.0, kSpread = 0.3, kTwoPi = 6.283185307179586;

Tensor plane_normal(int64_t n, int64_t step, uint64_t seed) {
  return normal_by_id(at::arange(n), {2}, seed, Stream::noise, step).to(at::kDouble);
}
Tensor plane_uniform(int64_t n, int64_t step, uint64_t seed, Stream stream = Stream::timestep) {
  return uniform_by_id(at::arange(n), 1, seed, stream, step).squeeze(1).to(at::kDouble);
}

// Equal weights. mean [K, 2], covariance [K, 2, 2], float64.
struct Mixture {
  Tensor mean, covariance;

  struct Parts {
    Tensor share, whitened, log_p;  // [B, K], [B, K, 2]: C^-1 (x - m), [B]
  };
  Parts parts(const Tensor& x, const Tensor& alpha, const Tensor& sigma) const {
    const Tensor a = alpha.view({-1, 1}), v = sigma.square().view({-1, 1});
    const auto entry = [&](int64_t i, int64_t j) { return a.square() * covariance.select(1, i).select(1, j) + (i == j ? v : at::zeros_like(v)); };
    const Tensor xx = entry(0, 0), xy = entry(0, 1), yy = entry(1, 1), det = xx * yy - xy.square();  // [B, K]
    const Tensor dx = x.select(1, 0).view({-1, 1}) - a * mean.select(1, 0), dy = x.select(1, 1).view({-1, 1}) - a * mean.select(1, 1);
    const Tensor wx = (yy * dx - xy * dy) / det, wy = (xx * dy - xy * dx) / det;
    const Tensor each = -0.5 * (dx * wx + dy * wy) - 0.5 * det.log() - std::log(kTwoPi * static_cast<double>(mean.size(0)));
    return {each.softmax(1), at::stack({wx, wy}, 2), each.logsumexp(1)};
  }
  Tensor score(const Tensor& x, const Tensor& alpha, const Tensor& sigma) const {
    const Parts p = parts(x, alpha, sigma);
    return -(p.share.unsqueeze(2) * p.whitened).sum(1);
  }
  // E[x0 | x_t] (Tweedie).
  Tensor x0(const Tensor& x, const Tensor& alpha, const Tensor& sigma) const {
    return (x + sigma.square().view({-1, 1}) * score(x, alpha, sigma)) / alpha.view({-1, 1});
  }
  Tensor log_p(const Tensor& x) const {
    return parts(x, at::ones({x.size(0)}, at::kDouble), at::full({x.size(0)}, 1e-9, at::kDouble)).log_p;
  }
};

Mixture ring_of_modes() {
  const Tensor angle = at::arange(kModes).to(at::kDouble) * (kTwoPi / kModes);
  return {kRadius * at::stack({angle.cos(), angle.sin()}, 1), (kSpread * kSpread * at::eye(2, at::kDouble)).expand({kModes, 2, 2})};
}
Mixture one_gaussian(double x, double y, double deviation) {
  return {at::tensor({x, y}, at::kDouble).view({1, 2}), (deviation * deviation * at::eye(2, at::kDouble)).view({1, 2, 2})};
}

// x = mu_k + L_k eta, trained with Adam (beta1 = 0, beta2 = 0.999).
struct Student {
  Tensor mu, L;  // [K, 2], [K, 2, 2]
  Tensor squares_mu = at::zeros_like(mu), squares_L = at::zeros_like(L);
  int64_t updates = 0;

  Mixture mixture() const { return {mu.detach(), at::matmul(L.detach(), L.detach().transpose(1, 2)) + 1e-6 * at::eye(2, at::kDouble)}; }
  Tensor draw(int64_t n, int64_t step, uint64_t seed) const {
    const Tensor k = plane_uniform(n, step, seed, Stream::mix).mul(static_cast<double>(mu.size(0))).to(at::kLong);
    const Tensor eta = plane_normal(n, step, seed + 1000);
    return mu.index_select(0, k) + at::matmul(L.index_select(0, k), eta.unsqueeze(2)).squeeze(2);
  }
  void update(double lr) {
    const NoGrad no_grad;
    const double correction = 1.0 - std::pow(0.999, static_cast<double>(++updates));
    for (const auto& [p, v] : {std::pair{&mu, &squares_mu}, std::pair{&L, &squares_L}}) {
      const Tensor g = p->grad();
      v->mul_(0.999).add_(g.square(), 0.001);
      p->sub_(lr * g / ((*v / correction).sqrt() + 1e-10));
      g.zero_();
    }
  }
};

Student student_of(const Tensor& mu) {
  Student out{mu.detach().clone(), (kSpread * at::eye(2, at::kDouble)).repeat({mu.size(0), 1, 1})};
  out.mu.requires_grad_(true);
  out.L.requires_grad_(true);
  return out;
}
// All components at one mode.
Student cold_student(int64_t components, double x, double y, uint64_t seed) {
  return student_of(at::tensor({x, y}, at::kDouble) + 0.05 * plane_normal(components, 0, seed));
}

// The mean ends of the teacher's trajectories from each of 16 cells of the noise: what regression on trajectories gives, blurred
// where a cell has several modes.
Student warm_student(const Mixture& teacher, uint64_t seed) {
  constexpr int64_t n = 8000, steps = 64;
  const NoGrad no_grad;
  const Tensor noise = plane_normal(n, 0, seed);
  Tensor centres = noise.narrow(0, 0, kComponents).clone(), cell;
  const auto means = [&](const Tensor& y) {
    const Tensor count = at::zeros({kComponents}, at::kDouble).index_add(0, cell, at::ones({n}, at::kDouble));
    return at::zeros({kComponents, 2}, at::kDouble).index_add(0, cell, y) / count.clamp_min(1.0).view({-1, 1});
  };
  for (int iteration = 0; iteration < 20; ++iteration) {
    cell = (noise.unsqueeze(1) - centres).square().sum(2).argmin(1);
    centres = means(noise);
  }
  Tensor x = noise;
  for (int64_t j = 0; j < steps; ++j) {  // Euler's method in t from 0.999 to 0
    const double t = 0.999 * static_cast<double>(steps - j) / steps, next = 0.999 * static_cast<double>(steps - j - 1) / steps;
    const Tensor a = at::full({n}, 1.0 - t, at::kDouble), s = at::full({n}, t, at::kDouble);
    x = x + (next - t) * (x - teacher.x0(x, a, s)) / t;
  }
  return student_of(means(x));
}

struct Training {
  ScoreRange range = {};
  double follow = 1.0;  // the share of the way to the student that the critic goes in each of its updates
  int64_t critic_updates = 1, steps = 3000, batch = 256;
};

void train_student(Student* student, const Mixture& teacher, const Training& training, uint64_t seed) {
  const Schedule schedule({.kind = ScheduleKind::flow});
  Student critic = student_of(student->mu);
  critic.L = student->L.detach().clone();
  for (int64_t step = 0; step < training.steps; ++step) {
    const Tensor targets[] = {student->mu, student->L}, own[] = {critic.mu, critic.L};
    for (int64_t j = 0; j < training.critic_updates; ++j) align_fake_score(own, targets, 1.0 - training.follow);
    const Tensor x0 = student->draw(training.batch, step, seed);
    const Tensor t = score_timesteps(training.range, schedule, plane_uniform(training.batch, step, seed));
    const Tensor alpha = schedule.alpha(t), sigma = schedule.sigma(t), noise = plane_normal(training.batch, step, seed);
    const Tensor x_t = add_noise(schedule, x0.detach(), noise, t);
    const Tensor g = reverse_kl_gradient(x0, critic.mixture().x0(x_t, alpha, sigma), teacher.x0(x_t, alpha, sigma));
    pseudo_loss(x0, g).mean().backward();
    const double left = 1.0 - static_cast<double>(step) / static_cast<double>(training.steps);
    student->update(0.02 * std::min(1.0, 2.0 * left + 0.02));
  }
}

struct Quality {
  int64_t modes = 0;
  double precision = 0.0, reverse_kl = 0.0;
};
Quality quality_of(const Student& student, const Mixture& target) {
  constexpr int64_t n = 20000;
  const NoGrad no_grad;
  const Tensor x = student.draw(n, 0, 99);
  const auto [distance, mode] = (x.unsqueeze(1) - target.mean).square().sum(2).sqrt().min(1);
  const Tensor within = distance.lt(3.0 * kSpread);
  const Tensor share = at::zeros({kModes}, at::kDouble).index_add(0, mode, within.to(at::kDouble)) / static_cast<double>(n);
  const Quality out{share.gt(0.02).sum().item<int64_t>(), within.to(at::kDouble).mean().item<double>(),
                    (student.mixture().log_p(x) - target.log_p(x)).mean().item<double>()};
  fmt::print("    modes {} precision {:.3f} reverse KL {:.5f}\n", out.modes, out.precision, out.reverse_kl);
  return out;
}

TEST(DistillationOracle, ScoreIsTheGradientOfLogP) {
  const Mixture ring = ring_of_modes();
  const Tensor x = 3.0 * plane_normal(7, 0, 1), t = 0.1 + 0.8 * plane_uniform(7, 0, 1), a = 1.0 - t;
  for (int64_t axis = 0; axis < 2; ++axis) {
    const Tensor h = at::zeros({2}, at::kDouble);
    h[axis] = 1e-5;
    const Tensor slope = (ring.parts(x + h, a, t).log_p - ring.parts(x - h, a, t).log_p) / 2e-5;
    EXPECT_LT((slope - ring.score(x, a, t).select(1, axis)).abs().max().item<double>(), 1e-7);
  }
}

// Between Gaussians N(m_g, s_g^2) and N(m_d, s_d^2), E[xf - xr] = (m_g - m_d) t^2 / ((1 - t)^2 s_d^2 + t^2), whatever s_g.
TEST(DistillationOracle, MeanGradientHasTheClosedForm) {
  constexpr int64_t n = 400000;
  const Mixture student = one_gaussian(1.0, -2.0, 0.8), data = one_gaussian(0.5, 0.7, 1.3);
  const Schedule schedule({.kind = ScheduleKind::flow});
  for (const double share : {0.1, 0.5, 0.9}) {
    const Tensor t = at::full({n}, share * 1000.0, at::kDouble), a = schedule.alpha(t), s = schedule.sigma(t);
    const Tensor half = plane_normal(n / 2, 0, 3), noise = plane_normal(n / 2, 1, 3);  // and their mirror images: half the error
    const Tensor x0 = student.mean + 0.8 * at::cat({half, -half});
    const Tensor x_t = add_noise(schedule, x0, at::cat({noise, -noise}), t);
    const Tensor xf = student.x0(x_t, a, s), xr = data.x0(x_t, a, s);
    // The normalised gradient times what it was divided by.
    const Tensor difference = reverse_kl_gradient(x0, xf, xr) * (x0 - xr).abs().mean(1, true);
    const Tensor expected = (student.mean - data.mean) * (share * share / ((1 - share) * (1 - share) * 1.69 + share * share));
    EXPECT_LT((difference.mean(0) - expected).abs().max().item<double>(), 1e-3) << share;
  }
}

// x_t of flow divided by sqrt(alpha^2 + sigma^2) is that of a variance-preserving model: the same x0, so the same gradient.
TEST(DistillationOracle, EpsilonAndFlowModelsHaveOneGradient) {
  constexpr int64_t n = 500;
  const Mixture conditional = ring_of_modes(), unconditional = one_gaussian(0.0, 0.0, 3.0), fake = one_gaussian(1.0, -2.0, 0.8);
  const Tensor t = 0.02 + 0.96 * plane_uniform(n, 0, 5), x0 = fake.mean + 0.8 * plane_normal(n, 0, 5), noise = plane_normal(n, 1, 5);
  const auto gradient = [&](Prediction prediction, const Tensor& alpha, const Tensor& sigma) {
    const Tensor a = alpha.view({-1, 1}), s = sigma.view({-1, 1}), x_t = a * x0 + s * noise;
    const auto output = [&](const Mixture& m) {
      const Tensor clean = m.x0(x_t, alpha, sigma);
      return prediction_target(prediction, clean, (x_t - a * clean) / s, alpha, sigma);
    };
    const Tensor xr = guided_x0(prediction, output(conditional), output(unconditional), 4.0, x_t, alpha, sigma);
    return reverse_kl_gradient(x0, predicted_x0(prediction, output(fake), x_t, alpha, sigma), xr);
  };
  const Tensor length = ((1 - t).square() + t.square()).sqrt();
  const Tensor flow = gradient(Prediction::flow, 1 - t, t), epsilon = gradient(Prediction::epsilon, (1 - t) / length, t / length);
  EXPECT_LT((flow - epsilon).abs().max().item<double>(), 1e-9);
  EXPECT_LT((flow - gradient(Prediction::v_prediction, (1 - t) / length, t / length)).abs().max().item<double>(), 1e-9);
  EXPECT_GT(flow.abs().mean().item<double>(), 0.1);
}

// The gradient is zero at every point of the optimum, not only in the mean: training ends there exactly.
TEST(DistillationOracle, OneStepStudentOfAGaussianIsExact) {
  const Mixture target{at::tensor({1.0, 2.0}, at::kDouble).view({1, 2}), at::tensor({1.0, 0.6, 0.6, 0.8}, at::kDouble).view({1, 2, 2})};
  Student student = cold_student(1, 0.0, 0.0, 1);
  train_student(&student, target, {.steps = 1500}, 2);
  EXPECT_LT((student.mixture().mean - target.mean).abs().max().item<double>(), 1e-6);
  EXPECT_LT((student.mixture().covariance - target.covariance).abs().max().item<double>(), 1e-6);
}

// Three seeds each: a component may be left between two modes, which is no fault of the gradient and costs about 0.1 in KL.
constexpr int64_t kSeeds = 3;
struct Outcome {
  std::vector<Quality> runs = {};
  int64_t most_modes() const { return std::ranges::max_element(runs, {}, &Quality::modes)->modes; }
  int64_t fewest_modes() const { return std::ranges::min_element(runs, {}, &Quality::modes)->modes; }
  Quality median_kl() const {
    std::vector<Quality> sorted = runs;
    std::ranges::sort(sorted, {}, &Quality::reverse_kl);
    return sorted[sorted.size() / 2];
  }
};
Outcome outcome_of(Student (*start)(uint64_t seed), const Training& training) {
  Outcome out;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    Student student = start(seed);
    train_student(&student, ring_of_modes(), training, seed + 50);
    out.runs.push_back(quality_of(student, ring_of_modes()));
  }
  return out;
}
Student cold_at_one_mode(uint64_t seed) { return cold_student(kComponents, kRadius, 0.0, seed); }
Student warm_at_the_ring(uint64_t seed) { return warm_student(ring_of_modes(), seed); }

TEST(DistillationOracle, ColdStartWithoutHighNoiseLosesModes) {
  EXPECT_LE(outcome_of(cold_at_one_mode, {.range = {.min = 0.02, .max = 0.5}, .steps = 1500}).most_modes(), 4);
  EXPECT_EQ(outcome_of(cold_at_one_mode, {.steps = 1500}).fewest_modes(), kModes);  // and with it does not
}

TEST(DistillationOracle, WarmStartKeepsAllModes) {
  const Outcome before = outcome_of(warm_at_the_ring, {.steps = 0}), after = outcome_of(warm_at_the_ring, {});
  EXPECT_LT(before.median_kl().precision, 0.6);  // alone it is blurred
  EXPECT_GT(before.median_kl().reverse_kl, 5.0);
  EXPECT_EQ(after.fewest_modes(), kModes);
  EXPECT_GT(after.median_kl().precision, 0.98);
  EXPECT_LT(after.median_kl().reverse_kl, 0.005);
  // From this start, not even the lack of high noise levels loses modes.
  EXPECT_EQ(outcome_of(warm_at_the_ring, {.range = {.min = 0.02, .max = 0.5}, .steps = 1500}).fewest_modes(), kModes);
}

TEST(DistillationOracle, MoreCriticUpdatesRepairALaggingCritic) {
  const Outcome slow = outcome_of(warm_at_the_ring, {.follow = 0.02}), fast = outcome_of(warm_at_the_ring, {.follow = 0.02, .critic_updates = 10});
  EXPECT_GT(slow.median_kl().reverse_kl, 0.01);
  EXPECT_LT(fast.median_kl().reverse_kl, 0.002);
}

}  // namespace
}  // namespace fewstep::diffusion
