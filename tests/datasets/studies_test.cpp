// The two conditioning studies on Fashion-MNIST: what is told of an image is what was done to it.
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "datasets/canvas_study.h"
#include "datasets/size_study.h"
#include "src/base/error.h"
#include "src/config/config.h"
#include "src/io/image.h"
#include "src/tensor/ops.h"
#include "tests/datasets/fake_fashion.h"
#include "tests/support/message_of.h"
#include "tests/support/scratch.h"

namespace fewstep {
namespace {

using ::testing::HasSubstr;

struct Studies : ::testing::Test {
  static constexpr int64_t kTrain = 6000;
  static void SetUpTestSuite() {
    folder = std::make_unique<testing::ScratchFolder>("studies");
    testing::write_fake_fashion(folder->path(), kTrain + 20, 60);
  }
  static void TearDownTestSuite() { folder.reset(); }
  template <class Config>
  static Config config() {
    Config c;
    c.study.folder = folder->path().string();
    c.study.heldout = 20;
    return c;
  }
  static FashionMnistConfig photographs() {
    FashionMnistConfig c;
    c.folder = folder->path().string(), c.heldout = 20, c.holdout_pairs = false;
    return c;
  }
  static inline std::unique_ptr<testing::ScratchFolder> folder;
};

int64_t size_told(const Sample& sample) {
  EXPECT_EQ(sample.micro.original_height, sample.micro.original_width);
  EXPECT_EQ(sample.micro.crop_top + sample.micro.crop_left, 0);
  EXPECT_EQ(sample.micro.target_height, 32);
  EXPECT_EQ(sample.micro.target_width, 32);
  return sample.micro.original_height;
}

// --- sizes ---

TEST(SizeLaw, KeepsTheShareOverClassesAndGivesSomeNone) {
  SizeStudyConfig c;
  for (double share : {0.03, 0.1, 0.5, 0.8}) {
    c.kept_share = share;
    double mean = 0;
    std::set<double> distinct;
    for (int64_t label = 0; label < 10; ++label) {
      const double p = large_share(c, label);
      EXPECT_GE(p, 0);
      EXPECT_LE(p, 1);
      mean += p / 10;
      distinct.insert(p);
    }
    EXPECT_NEAR(mean, share, 1e-12);
    EXPECT_EQ(large_share(c, 2), 0);
    EXPECT_EQ(large_share(c, 7), 0);
    if (share < 0.6) {
      EXPECT_EQ(distinct.size(), 9u);  // eight classes, each with a share of its own
    }
  }
  EXPECT_EQ(draw_original_size(c, 2, 0.0, 0.0), 8);
  EXPECT_EQ(draw_original_size(c, 2, 0.0, 0.999999), 24);
  EXPECT_EQ(draw_original_size(c, 3, 0.0, 0.5), 32);
}

TEST_F(Studies, SizesOfTrainingImagesFollowTheLaw) {
  for (double share : {0.03, 0.5}) {
    auto c = config<SizeStudyConfig>();
    c.kept_share = share;
    const auto data = c.build(Split::train);
    ASSERT_EQ(data->size(), kTrain);
    std::map<int64_t, double> large, small_sum, small_count;
    int64_t kept = 0;
    for (int64_t i = 0; i < data->size(); ++i) {
      const Sample sample = data->get(i, 1, 0);
      const int64_t size = size_told(sample);
      if (size == 32) {
        ++kept, ++large[sample.label];
      } else {
        EXPECT_GE(size, 8);
        EXPECT_LE(size, 24);
        small_sum[sample.label] += static_cast<double>(size), ++small_count[sample.label];
      }
    }
    const double sigma = std::sqrt(kTrain * share * (1 - share));
    EXPECT_NEAR(static_cast<double>(kept), kTrain * share, 4 * sigma);
    EXPECT_EQ(large.count(2) + large.count(7), 0u);
    for (int64_t label = 0; label < 10; ++label) {
      const double p = large_share(c, label), n = kTrain / 10;
      EXPECT_NEAR(large[label], n * p, 4 * std::sqrt(n * p * (1 - p)) + 1) << label;
    }
    // Class 0 was larger when small than class 9: E[u^0.5] = 2/3, E[u^1.4] = 0.42 of 17 steps.
    if (share < 0.1) {  // where both have many
      EXPECT_NEAR(small_sum[0] / small_count[0] - small_sum[9] / small_count[9], 17 * (2.0 / 3 - 1 / 2.4), 1.0);
    }
  }
}

TEST_F(Studies, SmallImagesAreSampledDownAndUpAgain) {
  const auto data = config<SizeStudyConfig>().build(Split::train), whole = photographs().build(Split::train);
  int64_t small = 0;
  for (int64_t i = 0; i < 300; ++i) {
    const Sample sample = data->get(i, 1, 0), photograph = whole->get(i, 1, 0);
    ASSERT_EQ(sample.id, photograph.id);
    EXPECT_EQ(sample.caption, photograph.caption);
    const int64_t size = size_told(sample);
    if (size == 32) {
      EXPECT_TRUE(sample.image.equal(photograph.image)) << i;
      continue;
    }
    ++small;
    // Nothing finer than the small grid is left: sampling it down loses (almost) nothing, while the photograph's
    // stripes go.
    const auto loss = [&](const Tensor& image) {
      const Tensor again = io::resize(io::resize(image, size, size), 32, 32);
      return (again.to(at::kFloat) - image.to(at::kFloat)).square().mean().item<double>();
    };
    EXPECT_LT(loss(sample.image), 0.25 * loss(photograph.image)) << i << " size " << size;
  }
  EXPECT_GT(small, 200);
}

TEST_F(Studies, SizesBelongToTheImageAndToTheSeed) {
  auto c = config<SizeStudyConfig>();
  const auto a = c.build(Split::train), b = c.build(Split::train);
  c.study.split_seed = 5;
  const auto other = c.build(Split::train);
  int64_t changed = 0;
  for (int64_t i = 0; i < 500; ++i) {
    const int64_t size = size_told(a->get(i, 1, 0));
    EXPECT_EQ(size, size_told(b->get(i, 9, 3)));
    changed += size != size_told(other->get(i, 1, 0));
  }
  EXPECT_GT(changed, 300);
  EXPECT_EQ(a->fingerprint(), b->fingerprint());
  EXPECT_NE(a->fingerprint(), other->fingerprint());
  EXPECT_THAT(a->description(), HasSubstr("none of: pullover, sneaker"));
}

TEST_F(Studies, DiscardingKeepsTheLargeImagesOnly) {
  auto c = config<SizeStudyConfig>();
  const auto all = c.build(Split::train);
  std::vector<int64_t> large;
  for (int64_t i = 0; i < all->size(); ++i)
    if (const Sample sample = all->get(i, 1, 0); size_told(sample) == 32) large.push_back(sample.id);
  c.discard_small = true;
  const auto kept = c.build(Split::train);
  std::vector<int64_t> ids;
  const auto& fashion = dynamic_cast<const FashionMnist&>(*kept);
  for (int64_t i = 0; i < kept->size(); ++i) {
    const Sample sample = kept->get(i, 1, 0);
    ids.push_back(sample.id);
    EXPECT_EQ(size_told(sample), 32);
    EXPECT_EQ(sample.label, fashion.label(i));
    EXPECT_EQ(sample.attributes, fashion.attributes(i));
    EXPECT_TRUE(sample.label != 2 && sample.label != 7);
  }
  EXPECT_EQ(ids, large);
  EXPECT_NE(kept->fingerprint(), all->fingerprint());
}

TEST_F(Studies, ShufflingPermutesTheNumbersAndLeavesTheImages) {
  auto c = config<SizeStudyConfig>();
  const auto told = c.build(Split::train);
  c.shuffle_sizes = true;
  const auto shuffled = c.build(Split::train);
  std::vector<int64_t> before, after;
  double covariance = 0, variance = 0;
  for (int64_t i = 0; i < told->size(); ++i) {
    const Sample a = told->get(i, 1, 0), b = shuffled->get(i, 1, 0);
    if (i < 200) {
      EXPECT_TRUE(a.image.equal(b.image));
    }
    before.push_back(size_told(a)), after.push_back(size_told(b));
  }
  double mean = 0;
  for (int64_t size : before) mean += static_cast<double>(size) / static_cast<double>(before.size());
  for (size_t i = 0; i < before.size(); ++i) {
    covariance += (static_cast<double>(before[i]) - mean) * (static_cast<double>(after[i]) - mean);
    variance += (static_cast<double>(before[i]) - mean) * (static_cast<double>(before[i]) - mean);
  }
  EXPECT_LT(std::abs(covariance / variance), 4 / std::sqrt(static_cast<double>(before.size())));  // no correlation left
  EXPECT_NE(before, after);
  std::sort(before.begin(), before.end()), std::sort(after.begin(), after.end());
  EXPECT_EQ(before, after);
}

TEST_F(Studies, HeldoutAndTestImagesAreOfFullSize) {
  const auto test = config<SizeStudyConfig>().build(Split::test), whole = photographs().build(Split::test);
  ASSERT_EQ(test->size(), 60);
  for (int64_t i = 0; i < test->size(); ++i) {
    EXPECT_EQ(size_told(test->get(i, 1, 0)), 32);
    EXPECT_TRUE(test->get(i, 1, 0).image.equal(whole->get(i, 1, 0).image));
  }
  EXPECT_EQ(config<SizeStudyConfig>().build(Split::heldout)->size(), 20);
  EXPECT_EQ(size_told(config<SizeStudyConfig>().build(Split::heldout)->get(3, 1, 0)), 32);
}

// --- canvases ---

// Does the garment of a grey image [1, H, W] reach the outermost rows or columns?
bool touches_border(const Tensor& image) {
  const Tensor front = image[0].gt(64);
  const auto any = [](const Tensor& line) { return line.any().item<bool>(); };
  return any(front.select(0, 0)) || any(front.select(0, -1)) || any(front.select(1, 0)) || any(front.select(1, -1));
}

bool is_square(const Sample& s) { return s.micro.original_height == s.micro.original_width; }

TEST_F(Studies, SquareCanvasesShowTheGarmentWhole) {
  const auto data = config<CanvasStudyConfig>().build(Split::train);
  std::map<std::pair<int64_t, int64_t>, int64_t> canvases;
  for (int64_t i = 0; i < 2000; ++i) {
    const Sample sample = data->get(i, 1, 0);
    const auto& m = sample.micro;
    ++canvases[{m.original_height, m.original_width}];
    EXPECT_EQ(sample.image.sizes().vec(), (std::vector<int64_t>{1, 32, 32}));
    if (!is_square(sample)) continue;
    EXPECT_EQ(m.crop_top + m.crop_left, 0);
    EXPECT_FALSE(touches_border(sample.image)) << i;
    // It fills the square up to the margin: its longer side is 28.
    const Tensor front = sample.image[0].gt(32);
    const int64_t rows = front.any(1).sum().item<int64_t>(), columns = front.any(0).sum().item<int64_t>();
    EXPECT_EQ(std::max(rows, columns), 28) << i;
  }
  ASSERT_EQ(canvases.size(), 3u);
  EXPECT_NEAR(static_cast<double>(canvases[{32, 32}]), 1000, 90);
  EXPECT_NEAR(static_cast<double>(canvases[{32, 64}]), 500, 80);
  EXPECT_NEAR(static_cast<double>(canvases[{64, 32}]), 500, 80);
}

TEST_F(Studies, CropOffsetsAreUniformAndOnTheLongAxisOnly) {
  const auto data = config<CanvasStudyConfig>().build(Split::train);
  std::map<int64_t, int64_t> offsets;
  int64_t wide = 0, moved = 0;
  for (int64_t i = 0; i < kTrain; ++i) {
    const Sample sample = data->get(i, 1, 0);
    if (is_square(sample)) continue;
    const bool landscape = sample.micro.original_width == 64;
    EXPECT_EQ(landscape ? sample.micro.crop_top : sample.micro.crop_left, 0);
    ++offsets[landscape ? sample.micro.crop_left : sample.micro.crop_top];
    ++wide;
    moved += data->get(i, 1, 1).micro != sample.micro;
  }
  ASSERT_EQ(offsets.size(), 33u);  // 0 and 32 among them
  EXPECT_EQ(offsets.begin()->first, 0);
  EXPECT_EQ(offsets.rbegin()->first, 32);
  const double expected = static_cast<double>(wide) / 33;
  for (const auto& [offset, count] : offsets)
    EXPECT_NEAR(static_cast<double>(count), expected, 5 * std::sqrt(expected)) << offset;
  EXPECT_GT(moved, wide * 9 / 10);  // another epoch, another crop
}

// Which sides of a crop the garment touches: {first, last} along the long axis.
std::pair<bool, bool> cut_sides(const Tensor& image, bool landscape) {
  const Tensor front = image[0].gt(64);
  const auto side = [&](int64_t at) { return front.select(landscape ? 1 : 0, at).any().item<bool>(); };
  return {side(0), side(-1)};
}

TEST_F(Studies, RealCropsAtAnOffsetCutOnTheSideThatTheyTell) {
  for (bool landscape : {true, false}) {
    std::map<int64_t, std::array<int64_t, 3>> cut;  // by offset: first side, last side, any
    for (int64_t offset : {0, 16, 32}) {
      auto c = config<CanvasStudyConfig>();
      (landscape ? c.fixed_left : c.fixed_top) = offset;
      const auto data = c.build(Split::train);
      for (int64_t i = 0; i < 1000; ++i) {
        const Sample sample = data->get(i, 1, 0);
        EXPECT_EQ(sample.micro, (landscape ? MicroConditioning{32, 64, 0, offset, 32, 32}
                                           : MicroConditioning{64, 32, offset, 0, 32, 32}));
        const auto [first, last] = cut_sides(sample.image, landscape);
        cut[offset][0] += first, cut[offset][1] += last, cut[offset][2] += touches_border(sample.image);
        EXPECT_GT(sample.image.sum().item<int64_t>(), 0) << "nothing to be seen";
      }
    }
    EXPECT_EQ(cut[0][0], 0);  // the canvas ends: the garment cannot lie beyond
    EXPECT_EQ(cut[32][1], 0);
    EXPECT_GT(cut[0][1], 400);
    EXPECT_GT(cut[32][0], 400);
    EXPECT_GT(std::min(cut[16][0], cut[16][1]), 200);
    EXPECT_GT(cut[16][2], 500);
  }
}

TEST_F(Studies, FixedCropsShowWhatTrainingCropsShowThere) {
  const auto data = config<CanvasStudyConfig>().build(Split::train);
  auto c = config<CanvasStudyConfig>();
  c.fixed_left = 8;
  const auto fixed = c.build(Split::train);
  int64_t seen = 0, cut = 0, fixed_cut = 0;
  for (int64_t epoch = 0; epoch < 4; ++epoch)
    for (int64_t i = 0; i < kTrain; ++i) {
      const Sample sample = data->get(i, 1, epoch);
      if (sample.micro.original_width != 64 || sample.micro.crop_left < 6 || sample.micro.crop_left > 10) continue;
      ++seen, cut += touches_border(sample.image);
    }
  for (int64_t i = 0; i < 2000; ++i) fixed_cut += touches_border(fixed->get(i, 1, 0).image);
  ASSERT_GT(seen, 600);
  EXPECT_NEAR(static_cast<double>(cut) / static_cast<double>(seen), static_cast<double>(fixed_cut) / 2000, 0.07);
}

TEST_F(Studies, WithoutSpreadNothingIsCut) {
  auto c = config<CanvasStudyConfig>();
  c.spread = 0;
  const auto data = c.build(Split::train);
  for (int64_t i = 0; i < 500; ++i) EXPECT_FALSE(touches_border(data->get(i, 1, 0).image)) << i;
}

TEST_F(Studies, ShuffledCropsAreThoseOfOtherImages) {
  auto c = config<CanvasStudyConfig>();
  const auto told = c.build(Split::train);
  c.shuffle_crops = true;
  const auto shuffled = c.build(Split::train);
  std::multiset<std::array<int64_t, kMicroNumbers>> before, after;
  int64_t same_canvas = 0;
  for (int64_t i = 0; i < told->size(); ++i) {
    const Sample a = told->get(i, 1, 2), b = shuffled->get(i, 1, 2);
    if (i < 200) {
      EXPECT_TRUE(a.image.equal(b.image));
    }
    before.insert(micro_numbers(a.micro)), after.insert(micro_numbers(b.micro));
    same_canvas += is_square(a) == is_square(b);
  }
  EXPECT_EQ(before, after);
  EXPECT_NEAR(static_cast<double>(same_canvas), kTrain / 2.0, 4 * std::sqrt(kTrain / 4.0));  // independent
}

// --- configs ---

struct Root {
  std::unique_ptr<DatasetConfig> data;
};
void describe(config::Visitor& v, Root& root) { v.field("data", root.data, "data set", dataset_kinds()); }

std::string refused(const std::string& yaml) {
  return message_of<ConfigError>([&] { config::parse<Root>("data: {" + yaml + "}"); });
}

TEST(StudyConfigs, AreReadFromTheTableAndChecked) {
  auto root = config::parse<Root>("data: {kind: fashion_mnist_sizes, kept_share: 0.5, classes_without_large: [1, 4]}");
  EXPECT_EQ(dynamic_cast<SizeStudyConfig&>(*root.data).classes_without_large, (std::vector<int64_t>{1, 4}));
  EXPECT_EQ(config::parse<Root>("data: {kind: fashion_mnist_canvas, spread: 0.25}").data->kind(),
            "fashion_mnist_canvas");
  EXPECT_THAT(refused("kind: fashion_mnist_sizes, small_max: 32"), HasSubstr("below image_size"));
  EXPECT_THAT(refused("kind: fashion_mnist_sizes, small_min: 20, small_max: 10"), HasSubstr("small_min"));
  EXPECT_THAT(refused("kind: fashion_mnist_sizes, kept_share: 0.9"), HasSubstr("too few"));
  EXPECT_THAT(refused("kind: fashion_mnist_sizes, classes_without_large: [3, 3]"), HasSubstr("twice"));
  EXPECT_THAT(refused("kind: fashion_mnist_sizes, discard_small: true, shuffle_sizes: true"),
              HasSubstr("nothing to shuffle"));
  EXPECT_THAT(refused("kind: fashion_mnist_canvas, fixed_left: 33"), HasSubstr("the canvas ends"));
  EXPECT_THAT(refused("kind: fashion_mnist_canvas, fixed_left: 3, fixed_top: 3"), HasSubstr("only one"));
}

}  // namespace
}  // namespace fewstep
