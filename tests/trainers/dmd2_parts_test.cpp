// Parts of the trainer `dmd2` without networks: turns, draws, monitors.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "src/base/error.h"
#include "src/config/config.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"
#include "trainers/dmd2_draws.h"
#include "trainers/dmd2_monitors.h"
#include "trainers/dmd2_turns.h"

namespace fewstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct TurnRoot {
  TurnConfig turns = {};
};
void describe(config::Visitor& v, TurnRoot& r) { describe_turns(v, r.turns); }

struct Counted {
  int64_t student = 0, critic = 0;
  std::vector<int64_t> students_at = {};
};
Counted count_turns(const TurnConfig& c, int64_t iterations) {
  Counted out;
  for (int64_t i = 0; i < iterations; ++i) {
    const Turns turns = turns_at(c, i);
    EXPECT_TRUE(turns.student || turns.critic) << "iteration " << i << " does nothing";
    out.student += turns.student, out.critic += turns.critic;
    if (turns.student) out.students_at.push_back(i);
  }
  return out;
}

TEST(Dmd2Turns, FiveHasBothPublishedMeanings) {
  const Counted dmd2 = count_turns({.updates = 5, .rule = CriticRule::every_iteration}, 100);
  EXPECT_EQ(dmd2.student, 20);
  EXPECT_EQ(dmd2.critic, 100);
  EXPECT_EQ(critic_turns({.updates = 5}), 5);
  const Counted fastgen = count_turns({.updates = 5, .rule = CriticRule::between}, 100);
  EXPECT_EQ(fastgen.student, 20);
  EXPECT_EQ(fastgen.critic, 80);
  EXPECT_EQ(critic_turns({.updates = 5, .rule = CriticRule::between}), 4);
  EXPECT_THAT(count_turns({.updates = 5}, 12).students_at, ElementsAre(0, 5, 10));
  EXPECT_THAT(count_turns({.updates = 5, .lead = 3}, 12).students_at, ElementsAre(3, 8));
  EXPECT_EQ(count_turns({.updates = 2, .rule = CriticRule::between, .lead = 3}, 7).critic, 5);
  const Counted both = count_turns({.updates = 1}, 7);
  EXPECT_EQ(both.student, 7);
  EXPECT_EQ(both.critic, 7);
}

TEST(Dmd2Turns, EveryIterationHasItsPlaceInACycle) {
  const TurnConfig c{.updates = 3, .lead = 4};
  int64_t cycle = -2, place = 2;
  for (int64_t i = 0; i < 12; ++i) {
    const CyclePlace at = cycle_place(c, i);
    EXPECT_EQ(at.cycle, cycle) << i;
    EXPECT_EQ(at.place, place) << i;
    if (++place == 3) place = 0, ++cycle;
  }
}

TEST(Dmd2Turns, AFakeScoreWithoutTurnsIsRefused) {
  EXPECT_EQ(config::parse<TurnRoot>("updates: 3\nrule: between\n").turns.rule, CriticRule::between);
  const auto says = [](const std::string& yaml) { return message_of<ConfigError>([&] { config::parse<TurnRoot>(yaml); }); };
  EXPECT_THAT(says("updates: 1\nrule: between\n"), HasSubstr("never have a turn"));
  EXPECT_THAT(says("updates: 0\n"), HasSubstr("updates"));
  EXPECT_THAT(says("rule: sometimes\n"), HasSubstr("every_iteration"));
}

diffusion::Schedule flow() { return diffusion::Schedule({.kind = diffusion::ScheduleKind::flow}); }

TEST(Dmd2Draws, RowsBelongToTheirSampleAndSlotsToTheirStep) {
  const auto draw = [](const DrawKey& k, int64_t slots) { return draw_rollout(k, {2, 3, 3}, slots, at::kDouble); };
  const DrawKey key{.ids = at::tensor({4, 7, 9}, at::kLong), .seed = 5, .step = 11};
  const Tensor two = draw(key, 2), four = draw(key, 4);
  EXPECT_TRUE(two.equal(four.narrow(1, 0, 2)));
  const DrawKey alone{.ids = at::tensor({7}, at::kLong), .seed = 5, .step = 11};
  EXPECT_TRUE(draw(alone, 4)[0].equal(four[1]));
  EXPECT_FALSE(draw({.ids = key.ids, .seed = 5, .step = 12}, 2).equal(two));
  for (int64_t i = 0; i < 4; ++i)
    for (int64_t j = 0; j < i; ++j) EXPECT_GT((four.select(1, i) - four.select(1, j)).abs().max().item<double>(), 0.1);
}

TEST(Dmd2Draws, NoisedSamplesAreWhatTheyAreMadeOf) {
  const diffusion::Schedule schedule = flow();
  const Tensor x0 = at::full({4, 1, 3, 3}, 0.7, at::kDouble), ids = at::arange(4);
  const NoisedX0 n = draw_noised({ids, 3, 2}, Stream::score, {}, schedule, x0), of_critic = draw_noised({ids, 3, 2}, Stream::critic, {0.0, 1.0}, schedule, x0);
  const Tensor s = (n.t / 1000.0).view({4, 1, 1, 1});
  EXPECT_LT((n.x_t - ((1.0 - s) * x0 + s * n.noise)).abs().max().item<double>(), 1e-12);
  EXPECT_GT((n.noise - of_critic.noise).abs().max().item<double>(), 0.1);
  const NoisedX0 part = draw_noised({ids.narrow(0, 2, 1), 3, 2}, Stream::score, {}, schedule, x0.narrow(0, 2, 1));
  EXPECT_TRUE(part.x_t[0].equal(n.x_t[2]));
}

// t is no function of the noise beside it: they come of different blocks of one stream.
TEST(Dmd2Draws, TimestepsDoNotFollowTheNoise) {
  constexpr int64_t N = 20000;
  const NoisedX0 n = draw_noised({at::arange(N), 3, 2}, Stream::score, {0.0, 1.0}, flow(), at::zeros({N, 1, 1, 5}));
  const Tensor t = n.t.to(at::kDouble) / 1000.0 - 0.5, noise = n.noise.view({N, 5}).to(at::kDouble);
  EXPECT_NEAR(t.mean().item<double>(), 0.0, 0.01);
  for (const Tensor& f : {noise, noise.square() - 1.0, noise.abs() - std::sqrt(2.0 / M_PI)})
    EXPECT_LT((f * t.unsqueeze(1)).mean(0).abs().max().item<double>(), 0.02);  // 0.29 deviations of t / sqrt(N): 0.002
}

TEST(Dmd2Draws, TheRungIsUniformAndOneOfTheSchedules) {
  const diffusion::StudentSchedule schedule({.steps = 4}, diffusion::Schedule({}));
  std::vector<int64_t> count(4, 0);
  for (int64_t step = 0; step < 4000; ++step) count.at(static_cast<size_t>(draw_rung(schedule, 7, step))) += 1;
  for (const int64_t n : count) EXPECT_NEAR(static_cast<double>(n), 1000.0, 110.0);  // 4 deviations
}

TEST(Dmd2Monitors, WatchesWarnOnceAndComeBackByAMargin) {
  Watch watch({.limit = 1.0, .upper = true});
  EXPECT_EQ(watch.see(0.5), Crossing::none);
  EXPECT_EQ(watch.see(1.5), Crossing::none);  // 0.7: one outlier is no trend
  EXPECT_EQ(watch.see(3.0), Crossing::out);   // 1.16
  EXPECT_EQ(watch.see(3.0), Crossing::none);  // it has been said
  while (watch.smoothed() > 0.97) EXPECT_EQ(watch.see(0.8), Crossing::none);
  EXPECT_TRUE(watch.out()) << "back at 0.9 only";
  Crossing last = Crossing::none;
  for (int i = 0; i < 20 && last == Crossing::none; ++i) last = watch.see(0.8);
  EXPECT_EQ(last, Crossing::back);
  EXPECT_LT(watch.smoothed(), 0.9);
  Watch low({.limit = 0.5, .upper = false});
  EXPECT_EQ(low.see(0.4), Crossing::out);
  EXPECT_EQ(Watch({.limit = 0.0}).see(1e9), Crossing::none);
}

TEST(Dmd2Monitors, DerivesLagRatioAndDiversity) {
  Dmd2Monitors monitors({});
  auto d = monitors.look({{"critic_loss", 0.9}, {"teacher_loss", 1.2}, {"gradient_dmd", 2.0}, {"gradient_gan", 8.0}, {"sample_distance", 0.6}}, 0);
  EXPECT_DOUBLE_EQ(d.at("critic_lag"), 0.75);
  EXPECT_DOUBLE_EQ(d.at("gradient_ratio"), 0.25);
  EXPECT_DOUBLE_EQ(d.at("diversity"), 1.0);
  EXPECT_EQ(d.at("collapsed"), 0.0);
  d = monitors.look({{"sample_distance", 0.06}}, 100);
  EXPECT_NEAR(d.at("diversity"), 0.1, 1e-12);
  EXPECT_FALSE(d.contains("critic_lag"));
  EXPECT_EQ(d.at("collapsed"), 1.0) << "at the first look";
  EXPECT_TRUE(monitors.out("diversity"));
  EXPECT_FALSE(monitors.out("critic_lag"));
  // Without a GAN there is no ratio; every accuracy has a watch of its own.
  EXPECT_FALSE(monitors.look({{"gradient_dmd", 1.0}}, 300).contains("gradient_ratio"));
  monitors.look({{"discriminator_accuracy[real]", 1.0}, {"discriminator_accuracy[fake]", 0.6}}, 301);
  EXPECT_TRUE(monitors.out("discriminator_accuracy[real]"));
  EXPECT_FALSE(monitors.out("discriminator_accuracy[fake]"));
}

TEST(Dmd2Monitors, GoOnFromTheirState) {
  Dmd2Monitors one({}), two({});
  const auto see = [](Dmd2Monitors& m, int from, int to) {
    std::map<std::string, double> last;
    for (int i = from; i < to; ++i) last = m.look({{"sample_distance", 1.0 / (1.0 + i)}, {"score_gap", 0.3 * i}}, i);
    return last;
  };
  see(one, 0, 3);
  two.load_state(one.state());
  EXPECT_EQ(see(one, 3, 9), see(two, 3, 9));
  EXPECT_TRUE(two.out("score_gap"));
  for (const auto& [name, tensor] : one.state()) EXPECT_TRUE(tensor.equal(two.state().at(name))) << name;
  EXPECT_THAT(message_of<DataError>([&] { two.load_state({}); }), HasSubstr("first_distance"));
}

TEST(Dmd2Monitors, DistanceIsWithinPromptsOnly) {
  const Tensor same = at::zeros({2, 3, 4}, at::kDouble);
  Tensor x = same.clone();  // two prompts, three samples each
  x[1] += 100.0;            // prompts differ, samples do not
  EXPECT_EQ(distance_within(x.view({6, 4}), 3).max().item<double>(), 0.0);
  x[0][1] += 3.0;  // one of three differs by 3 from two others: 2 of 3 pairs
  EXPECT_NEAR(distance_within(x.view({6, 4}), 3)[0].item<double>(), 2.0, 1e-12);
  EXPECT_EQ(distance_within(x.view({6, 4}), 3)[1].item<double>(), 0.0);
}

TEST(Dmd2Monitors, NamesOfBins) {
  EXPECT_THAT(score_gap_names(5), ElementsAre("score_gap[t<0.2]", "score_gap[t<0.4]", "score_gap[t<0.6]", "score_gap[t<0.8]", "score_gap[t<1.0]"));
  EXPECT_THAT(score_gap_names(4).front(), "score_gap[t<0.25]");
}

}  // namespace
}  // namespace fewstep
