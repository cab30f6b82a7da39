// The terms of the trainer `dino` against closed forms and plain loops; views keyed by sample id.
#include <gtest/gtest.h>

#include <cmath>

#include "src/base/error.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"
#include "trainers/dino_crops.h"
#include "trainers/dino_objective.h"

namespace fewstep {
namespace {

Tensor draws(at::IntArrayRef shape, uint64_t seed) {
  at::manual_seed(seed);
  return at::randn(shape, at::kDouble);
}

TEST(DinoLoss, IsTheMeanCrossEntropyOverPairsOfDifferentViews) {
  constexpr int64_t V = 4, B = 3, K = 5;
  const Tensor student = draws({V, B, K}, 1), teacher = draws({2, B, K}, 2), centre = draws({K}, 3);
  const Tensor p = teacher_probabilities(teacher, centre, 0.07);
  const Tensor loss = dino_loss(student, p, 0.1);
  for (int64_t b = 0; b < B; ++b) {
    double sum = 0;
    int pairs = 0;
    for (int64_t t = 0; t < 2; ++t)
      for (int64_t s = 0; s < V; ++s) {
        if (s == t) continue;
        double z_teacher = 0, z_student = 0, term = 0;
        const auto at_teacher = [&](int64_t k) { return (teacher[t][b][k] - centre[k]).item<double>() / 0.07; };
        const auto at_student = [&](int64_t k) { return student[s][b][k].item<double>() / 0.1; };
        for (int64_t k = 0; k < K; ++k) z_teacher += std::exp(at_teacher(k)), z_student += std::exp(at_student(k));
        for (int64_t k = 0; k < K; ++k) term -= std::exp(at_teacher(k)) / z_teacher * (at_student(k) - std::log(z_student));
        sum += term, ++pairs;
      }
    EXPECT_EQ(pairs, 6);
    EXPECT_NEAR(loss[b].item<double>(), sum / pairs, 1e-10);
  }
}

// A student that says nothing pays log K, whatever the teacher says; one that equals a sharp teacher pays nothing.
TEST(DinoLoss, HasItsKnownValues) {
  const Tensor p = at::softmax(draws({2, 3, 8}, 4), -1);
  EXPECT_NEAR(dino_loss(at::zeros({2, 3, 8}, at::kDouble), p, 0.1).max().item<double>(), std::log(8.0), 1e-12);
  const Tensor one_hot = at::one_hot(at::tensor({0, 3, 7}, at::kLong), 8).to(at::kDouble).expand({2, 3, 8});
  EXPECT_NEAR(dino_loss(one_hot * 10.0, one_hot, 0.1).max().item<double>(), 0, 1e-12);
}

TEST(DinoSchedules, RunFromTheirStartToTheirEnd) {
  EXPECT_DOUBLE_EQ(teacher_momentum(0.996, 0, 100), 0.996);
  EXPECT_NEAR(teacher_momentum(0.996, 50, 100), 0.998, 1e-12);
  EXPECT_DOUBLE_EQ(teacher_momentum(0.996, 100, 100), 1);
  EXPECT_DOUBLE_EQ(teacher_temperature(0.04, 0.07, 30, 0), 0.04);
  EXPECT_NEAR(teacher_temperature(0.04, 0.07, 30, 10), 0.05, 1e-12);
  EXPECT_DOUBLE_EQ(teacher_temperature(0.04, 0.07, 30, 30), 0.07);
  EXPECT_DOUBLE_EQ(teacher_temperature(0.04, 0.07, 0, 0), 0.07);
}

TEST(TeacherCentre, IsTheMovingMeanOfTheLogitsAndSeesTheSpread) {
  constexpr int64_t K = 6;
  const auto world = dist::World::single();
  TeacherCentre centre(K, 0.9, at::kDouble, *world);
  const Tensor first = draws({2, 3, K}, 5), second = draws({2, 5, K}, 6);
  for (const Tensor& logits : {first, second}) centre.add(logits, teacher_probabilities(logits, centre.value(), 0.5));
  const Tensor rows = at::cat({first.view({6, K}), second.view({10, K})});
  const TeacherSpread spread = centre.update(true);
  EXPECT_LE((centre.value() - rows.mean(0)).abs().max().item<double>(), 1e-14);
  const Tensor p = at::softmax(rows / 0.5, -1), mean = p.mean(0);
  EXPECT_NEAR(spread.entropy, -(p * p.log()).sum(1).mean().item<double>(), 1e-12);
  EXPECT_NEAR(spread.mean_entropy, -(mean * mean.log()).sum().item<double>(), 1e-12);
  EXPECT_NEAR(spread.divergence, (p * (p.log() - mean.log())).sum(1).mean().item<double>(), 1e-12);
  // The sums begin anew; with the centre held, only they move.
  const Tensor held = centre.value().clone();
  centre.add(second, teacher_probabilities(second, centre.value(), 0.5));
  centre.update(false);
  EXPECT_TRUE(held.equal(centre.value()));
  centre.add(second, teacher_probabilities(second, centre.value(), 0.5));
  centre.update(true);
  EXPECT_LE((centre.value() - (0.9 * held + second.view({10, K}).mean(0)) / 1.9).abs().max().item<double>(), 1e-14);
  EXPECT_NE(message_of<DataError>([&] { centre.load_state({{"centre", at::zeros({3})}, {"centre_updates", at::ones({1}, at::kLong)}}); }).find("prototypes"), std::string::npos);
}

TEST(CollapseWatch, FiresOnBothFormsAndOnlyAfterItsPatience) {
  constexpr int64_t K = 16;
  const double log_k = std::log(16.0);
  const CollapseConfig config{.limit = 0.05, .after = 10, .patience = 3};
  const TeacherSpread peak{.entropy = 0.01, .mean_entropy = 0.02, .divergence = 0.01};
  const TeacherSpread uniform{.entropy = log_k - 0.01, .mean_entropy = log_k, .divergence = 0.01};
  const TeacherSpread healthy{.entropy = 0.5, .mean_entropy = 2.5, .divergence = 2.0};
  for (const TeacherSpread& collapsed : {peak, uniform}) {
    CollapseWatch watch(config);
    EXPECT_FALSE(watch.see(collapsed, K, 9));  // before the watch begins
    EXPECT_FALSE(watch.see(collapsed, K, 10));
    EXPECT_FALSE(watch.see(collapsed, K, 11));
    EXPECT_TRUE(watch.see(collapsed, K, 12));
    EXPECT_FALSE(watch.see(healthy, K, 13));   // counts anew
    EXPECT_FALSE(watch.see(collapsed, K, 14));
  }
  CollapseConfig strict = config;
  strict.patience = 1, strict.action = CollapseAction::stop;
  const auto message = [&](const TeacherSpread& s) { return message_of<NumericError>([&] { CollapseWatch(strict).see(s, K, 20); }); };
  EXPECT_NE(message(peak).find("one peak"), std::string::npos);
  EXPECT_NE(message(uniform).find("all are uniform"), std::string::npos);
}

TEST(NearestNeighbours, VoteWithWeightsByCosine) {
  // Two near ones of class 0 against three far ones of class 1: the near ones win with k = 5.
  const Tensor bank = at::tensor({1.0, 0.02, 1.0, -0.02, 0.0, 1.0, 0.1, 1.0, -0.1, 1.0}, at::kDouble).view({5, 2}) *
                      at::tensor({1.0, 7.0, 2.0, 0.5, 3.0}, at::kDouble).unsqueeze(1);  // lengths do not count
  const Tensor labels = at::tensor({0, 0, 1, 1, 1}, at::kLong);
  const Tensor queries = at::tensor({5.0, 0.0, 0.0, 0.1}, at::kDouble).view({2, 2});
  const Tensor found = nearest_neighbour_classes(queries, bank, labels, 5, 3);
  EXPECT_EQ(found[0].item<int64_t>(), 0);
  EXPECT_EQ(found[1].item<int64_t>(), 1);
  EXPECT_TRUE(nearest_neighbour_classes(bank, bank, labels, 1, 3).equal(labels));
}

Tensor pictures(int64_t count, int64_t channels = 1) {
  at::manual_seed(9);
  return at::rand({count, channels, 16, 16});
}

TEST(Crops, BoxesShowTheShareOfTheAreaAndStayInside) {
  at::manual_seed(3);
  const Tensor boxes = crop_boxes(at::rand({4000, 4}, at::kDouble), 32, 24, 0.2, 0.5);
  const Tensor area = boxes.select(1, 2) * boxes.select(1, 3) / (32.0 * 24.0), aspect = boxes.select(1, 2) / boxes.select(1, 3);
  EXPECT_GE(boxes.min().item<double>(), 0);
  EXPECT_LE((boxes.select(1, 0) + boxes.select(1, 2)).max().item<double>(), 24 + 1e-9);
  EXPECT_LE((boxes.select(1, 1) + boxes.select(1, 3)).max().item<double>(), 32 + 1e-9);
  EXPECT_LE(area.max().item<double>(), 0.5 + 1e-9);
  EXPECT_GE(area.min().item<double>(), 0.2 - 1e-9);
  EXPECT_NEAR(area.mean().item<double>(), 0.35, 0.01);
  EXPECT_NEAR(aspect.max().item<double>(), 4.0 / 3, 0.01);
  EXPECT_NEAR(aspect.min().item<double>(), 3.0 / 4, 0.01);
}

TEST(Crops, ResizingTheWholeImageIsTheImageAndAHalfIsTheHalf) {
  const Tensor x = pictures(2).to(at::kDouble);
  const Tensor whole = at::tensor({0.0, 0.0, 16.0, 16.0}, at::kDouble).expand({2, 4}), flip = at::tensor({0, 1}, at::kLong).to(at::kBool);
  const Tensor same = resize_boxes(x, whole, flip, 16);
  EXPECT_LE((same[0] - x[0]).abs().max().item<double>(), 1e-12);
  EXPECT_LE((same[1] - x[1].flip({2})).abs().max().item<double>(), 1e-12);
  const Tensor part = at::tensor({3.0, 5.0, 8.0, 8.0}, at::kDouble).expand({2, 4});
  EXPECT_LE((resize_boxes(x, part, flip, 8)[0] - x[0].narrow(1, 5, 8).narrow(2, 3, 8)).abs().max().item<double>(), 1e-12);
  // Two source pixels between every two: their mean.
  EXPECT_LE((resize_boxes(x, whole, flip, 8)[0] - at::avg_pool2d(x, {2, 2})[0]).abs().max().item<double>(), 1e-12);
}

TEST(Crops, JitterAndBlurHaveTheirFixedPoints) {
  const Tensor x = pictures(2), one = at::ones({2}), zero = at::zeros({2});
  EXPECT_LE((jitter_images(x, one, one) - x).abs().max().item<double>(), 1e-6);
  EXPECT_LE((jitter_images(x, one, zero) - x.mean({1, 2, 3}, true)).abs().max().item<double>(), 1e-6);
  EXPECT_TRUE(blur_images(x, zero).equal(x));
  const Tensor grey = at::full({1, 1, 8, 8}, 0.3);
  EXPECT_LE((blur_images(grey, at::ones({1})) - grey).abs().max().item<double>(), 1e-6);
  Tensor dot = at::zeros({1, 1, 9, 9}, at::kDouble);
  dot[0][0][4][4] = 1.0;
  const Tensor spread = blur_images(dot, at::full({1}, 0.8, at::kDouble));
  EXPECT_NEAR(spread.sum().item<double>(), 1, 1e-12);
  EXPECT_NEAR((spread[0][0][4][5] / spread[0][0][4][4]).item<double>(), std::exp(-0.5 / 0.64), 1e-12);
}

TEST(Views, BelongToTheSampleIdNotToTheBatch) {
  const Tensor images = pictures(3) * 2.0 - 1.0, ids = at::tensor({17, 4, 99}, at::kLong);
  DinoCropConfig config;
  config.locals = 2, config.local_size = 8;
  const DinoViews all = make_views(images, {ids, 5, 3}, config);
  ASSERT_EQ(all.globals.sizes(), (std::vector<int64_t>{6, 3, 16, 16}));
  ASSERT_EQ(all.locals.sizes(), (std::vector<int64_t>{6, 3, 8, 8}));
  const Tensor order = at::tensor({2, 0}, at::kLong);
  const DinoViews some = make_views(images.index_select(0, order), {ids.index_select(0, order), 5, 3}, config);
  for (int64_t v = 0; v < 2; ++v)
    for (int64_t i = 0; i < 2; ++i) {
      EXPECT_TRUE(some.globals[v * 2 + i].equal(all.globals[v * 3 + order[i].item<int64_t>()]));
      EXPECT_TRUE(some.locals[v * 2 + i].equal(all.locals[v * 3 + order[i].item<int64_t>()]));
    }
  // Two views of an image differ; so do steps, seeds and streams; more local crops leave the others alone.
  EXPECT_FALSE(all.globals[0].equal(all.globals[3]));
  EXPECT_FALSE(all.globals.equal(make_views(images, {ids, 5, 4}, config).globals));
  EXPECT_FALSE(all.globals.equal(make_views(images, {ids, 6, 3}, config).globals));
  EXPECT_FALSE(all.globals.equal(make_views(images, {ids, 5, 3, Stream::eval}, config).globals));
  config.locals = 3;
  const DinoViews more = make_views(images, {ids, 5, 3}, config);
  EXPECT_TRUE(more.globals.equal(all.globals));
  EXPECT_TRUE(more.locals.narrow(0, 0, 6).equal(all.locals));
}

TEST(Views, GreyImagesBecomeRgbWithImageNetsMoments) {
  const Tensor x = dino_input(at::full({1, 1, 2, 2}, 0.0));
  EXPECT_NEAR(x[0][0][0][0].item<double>(), (0.5 - 0.485) / 0.229, 1e-6);
  EXPECT_NEAR(x[0][2][1][1].item<double>(), (0.5 - 0.406) / 0.225, 1e-6);
  EXPECT_NE(message_of<DataError>([] { dino_input(at::zeros({1, 4, 2, 2})); }).find("4 channels"), std::string::npos);
}

}  // namespace
}  // namespace fewstep
