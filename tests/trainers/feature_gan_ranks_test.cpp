// The adversarial stage on several ranks, which are processes of this program.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/dist/ranks.h"
#include "tests/trainers/feature_gan_bench.h"

namespace fewstep {
namespace {

namespace ranks = dist::testing;
using testing::GanBench;

double largest_share(const Tensor& a, const Tensor& b) { return ((a - b).norm() / b.norm()).item<double>(); }

Tensor flat(const GanBench& bench) {
  std::vector<Tensor> all;
  for (const auto& [name, tensor] : bench.gan->heads().state()) all.push_back(tensor.detach().flatten());
  return at::cat(all);
}

// Every rank trains beside the others on its share, and alone on the whole: both must stay the same.
void compare_with_one_rank(dist::World& world, const FeatureGanConfig& config) {
  GanBench shared(config, {}, &world), alone(config);
  const int64_t W = world.size();
  double worst = 0;
  for (int64_t step = 0; step < 6; ++step) {
    const StepContext at{.step = step, .epoch = 0, .seed = 3};
    const auto turn = [&](GanBench& bench) {
      const Batch batch = bench.batch(step);
      const models::UNetConditions conditions = bench.conditions(batch);
      const GanBatch on{.batch = batch, .conditions = conditions, .rung = 1, .at = at};
      Metrics metrics;
      const Tensor x0 = bench.fakes(batch, step);
      const Tensor gradient = bench.gan->generator_turn(x0, on, metrics).gradient;
      bench.gan->critic_turn(x0, {}, on, true, metrics);
      bench.gan->step(at, metrics);
      return std::pair(gradient, metrics.reduce(bench.world));
    };
    const auto [gradient, seen] = turn(shared);
    const auto [whole, expected] = turn(alone);
    const Tensor mine = at::arange(world.rank(), 8, W);
    worst = std::max(worst, largest_share(gradient / static_cast<double>(W), whole.index_select(0, mine)));
    for (const auto& [name, value] : expected)
      FEW_CHECK(std::abs(seen.at(name) - value) <= 1e-9 * (1 + std::abs(value)), "{} is {} on {} ranks, {} on one", name, seen.at(name), W, value);
  }
  // Over all of the state: the bias of a convolution before batch_local has no gradient but rounding, which Adam blows up.
  const GanBench fresh(config);
  const Tensor after = flat(shared), expected = flat(alone);
  worst = std::max(worst, largest_share(after, expected));
  const double moved = largest_share(after, flat(fresh));
  if (world.is_main()) fmt::print(stderr, "{} ranks, {}: |d| / |x| = {:.2e} after 6 steps (moved by {:.2f})\n", W, config.heads.norm, worst, moved);
  FEW_CHECK(worst <= 1e-10, "|d| / |x| = {:.2e} with norm {}", worst, config.heads.norm);
  FEW_CHECK(moved > 0.01, "the heads did not move");
}

int gan_ranks() {
  return ranks::with_world([](dist::World& world) {
    const testing::ScratchFolder folder("gan-rank");
    testing::write_vit_features(folder.path() / "vit");
    testing::write_teacher_file(folder.path() / "teacher.h5", {0, 3, 4, 7, 9});
    FeatureGanConfig c;
    c.features = (folder.path() / "vit").string(), c.blocks = {1, 3};
    c.teacher_images = (folder.path() / "teacher.h5").string(), c.any_teacher = true;
    c.r1_weight = 5, c.crop.size = 6, c.optimizer.lr = 1e-2;
    c.heads.kernel = 3, c.heads.norm_groups = 4, c.heads.virtual_batch = 2;  // 4 virtual batches: whole ones on 2 and 4 ranks
    for (const char* norm : {"group", "batch_local"}) {
      c.heads.norm = norm;
      compare_with_one_rank(world, c);
    }
  });
}

TEST(FeatureGanRanks, EqualOneRank) {
  for (const int size : {2, 4}) {
    const auto results = ranks::spawn("gan_ranks", {.size = size, .extra = {{"OMP_NUM_THREADS", "1"}}});
    for (const ranks::RankResult& r : results) EXPECT_EQ(r.exit_code, 0) << r.output;
    std::printf("%s", results.front().output.c_str());
  }
}

TEST(RealPlaces, AreExactForEveryBatchAndForEveryNumberOfRanks) {
  for (int64_t B = 1; B <= 48; ++B)
    for (const double share : {0.0, 0.1, 0.25, 0.5, 0.75, 1.0})
      for (int64_t step = 0; step < 4; ++step)
        EXPECT_EQ(real_places(at::arange(B, at::kLong), B, share, 5, step).sum().item<int64_t>(), std::llround(share * static_cast<double>(B)));
  const int64_t B = 32;
  for (int64_t step = 0; step < 5; ++step) {
    const Tensor one = real_places(at::arange(B, at::kLong), B, 0.25, 5, step);
    for (const int64_t W : {2, 4})
      for (const int64_t accumulate : {1, 2}) {
        Tensor put = at::zeros({B}, at::kBool);
        const int64_t n = B / W / accumulate;
        for (int64_t r = 0; r < W; ++r)
          for (int64_t m = 0; m < accumulate; ++m) {
            const Tensor places = (at::arange(m * n, (m + 1) * n, at::kLong)) * W + r;
            put.index_copy_(0, places, real_places(places, B, 0.25, 5, step));
          }
        EXPECT_TRUE(put.equal(one));
      }
  }
  // Every place has its turn.
  Tensor count = at::zeros({B}, at::kDouble);
  for (int64_t step = 0; step < 400; ++step) count += real_places(at::arange(B, at::kLong), B, 0.25, 5, step).to(at::kDouble);
  EXPECT_GT(count.min().item<double>(), 60);
  EXPECT_LT(count.max().item<double>(), 140);
}

}  // namespace
}  // namespace fewstep

int main(int argc, char** argv) {
  fewstep::dist::testing::run_as_rank(argc, argv, {{"gan_ranks", fewstep::gan_ranks}});
  ::testing::InitGoogleMock(&argc, argv);
  return RUN_ALL_TESTS();
}
