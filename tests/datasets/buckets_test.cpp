// Tables of buckets and the choice among them.
#include "datasets/buckets.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>

#include "src/base/philox.h"
#include "src/config/config.h"
#include "tests/support/message_of.h"

namespace fewstep {
namespace {

using ::testing::HasSubstr;

struct BucketRoot {
  BucketConfig buckets;
};
void describe(config::Visitor& v, BucketRoot& root) { v.field("buckets", root.buckets, ""); }

bool holds(const std::vector<BucketSize>& table, BucketSize size) {
  return std::find(table.begin(), table.end(), size) != table.end();
}

TEST(Buckets, ThePapersTable) {
  const auto& table = sdxl_buckets();
  EXPECT_EQ(table.size(), 40u);
  std::vector<BucketSize> lonely;
  for (BucketSize size : table) {
    EXPECT_EQ(std::count(table.begin(), table.end(), size), 1) << bucket_text(size);
    EXPECT_EQ(size.height % 64 + size.width % 64, 0);
    const double area = static_cast<double>(size.height * size.width) / (1024.0 * 1024.0);
    EXPECT_GE(area, 0.902);
    EXPECT_LE(area, 1.0);
    if (!holds(table, {size.width, size.height})) lonely.push_back(size);
  }
  EXPECT_EQ(lonely, (std::vector<BucketSize>{{704, 1344}}));
}

TEST(Buckets, GeneratedAtThePapersSizesIsThePapersTableAndOneTranspose) {
  const auto made = make_buckets(1024, 64, 512, 2048, 4);
  EXPECT_EQ(made.size(), 41u);
  for (BucketSize size : sdxl_buckets()) EXPECT_TRUE(holds(made, size)) << bucket_text(size);
  EXPECT_TRUE(holds(made, {1344, 704}));
}

// Any base: multiples of the step, areas, aspects, both orientations, and every aspect within reach of some bucket.
TEST(Buckets, GeneratedTablesKeepTheirPromises) {
  struct Case {
    int64_t base, step, low, high;
    double aspect;
  };
  for (const Case& c : {Case{512, 64, 256, 1024, 4}, Case{256, 16, 128, 512, 4}, Case{32, 4, 16, 64, 4}, Case{768, 32, 384, 1536, 2},
                        Case{1000, 64, 500, 2000, 4}, Case{64, 64, 64, 64, 1}}) {
    const auto table = make_buckets(c.base, c.step, c.low, c.high, c.aspect);
    double widest_gap = 0, before = 0;
    std::vector<double> aspects;
    for (BucketSize size : table) {
      const auto [low, high] = std::minmax(size.height, size.width);
      EXPECT_EQ(size.height % c.step + size.width % c.step, 0);
      EXPECT_GE(low, c.low);
      EXPECT_LE(high, c.high);
      EXPECT_LE(size.height * size.width, c.base * c.base);
      EXPECT_LE(static_cast<double>(high), c.aspect * static_cast<double>(low));
      EXPECT_TRUE(holds(table, {size.width, size.height})) << bucket_text(size);
      aspects.push_back(std::log(static_cast<double>(size.height) / static_cast<double>(size.width)));
    }
    std::sort(aspects.begin(), aspects.end());
    before = aspects.front();
    for (double a : aspects) widest_gap = std::max(widest_gap, a - before), before = a;
    EXPECT_LT(widest_gap, 0.5) << c.base;
  }
  EXPECT_EQ(make_buckets(64, 64, 64, 64, 1), (std::vector<BucketSize>{{64, 64}}));
  EXPECT_THAT(message_of<ConfigError>([] { make_buckets(64, 64, 128, 256, 4); }), HasSubstr("multiples of 64 in 128 to 256"));
}

TEST(Buckets, NearestByLogAspectIsTheSameForTransposes) {
  const auto table = make_buckets(1024, 64, 512, 2048, 4);  // closed under transposition
  for (uint64_t i = 0; i < 2000; ++i) {
    const auto height = static_cast<int64_t>(100 + philox_u64(1, i, 0) % 4000), width = static_cast<int64_t>(100 + philox_u64(1, i, 1) % 4000);
    const BucketSize a = table[static_cast<size_t>(nearest_bucket(height, width, table))];
    const BucketSize b = table[static_cast<size_t>(nearest_bucket(width, height, table))];
    EXPECT_NEAR(aspect_distance({height, width}, a), aspect_distance({width, height}, b), 1e-12);
    for (BucketSize other : table) EXPECT_LE(aspect_distance({height, width}, a), aspect_distance({height, width}, other) + 1e-12);
  }
  const auto chosen = [&](int64_t h, int64_t w) { return bucket_text(sdxl_buckets()[static_cast<size_t>(nearest_bucket(h, w, sdxl_buckets()))]); };
  EXPECT_EQ(chosen(3000, 3000), "1024x1024");
  EXPECT_EQ(chosen(3024, 4032), "896x1152");   // 4:3 and its transpose
  EXPECT_EQ(chosen(4032, 3024), "1152x896");
  EXPECT_EQ(chosen(1080, 1920), "768x1344");   // 16:9
  EXPECT_EQ(chosen(100, 5000), "512x2048");    // beyond the table
  EXPECT_EQ(chosen(704, 1344), "704x1344");
}

TEST(Buckets, ConfigReadsAndRefuses) {
  const auto with = [](const std::string& yaml) { return config::parse<BucketRoot>("buckets: " + yaml).buckets.table(); };
  EXPECT_TRUE(with("{kind: none}").empty());
  EXPECT_EQ(with("{kind: sdxl}"), sdxl_buckets());
  EXPECT_EQ(with("{kind: generated, base: 32, step: 8, min_side: 16, max_side: 64}"), make_buckets(32, 8, 16, 64, 4));
  EXPECT_EQ(with("{kind: list, sizes: [24x40, 32x32]}"), (std::vector<BucketSize>{{24, 40}, {32, 32}}));
  EXPECT_THAT(message_of<ConfigError>([&] { with("{kind: list}"); }), HasSubstr("sizes is empty"));
  EXPECT_THAT(message_of<ConfigError>([&] { with("{kind: list, sizes: [24*40]}"); }), HasSubstr("'24*40' is not HEIGHTxWIDTH"));
  EXPECT_THAT(message_of<ConfigError>([&] { with("{kind: list, sizes: [24x4o]}"); }), HasSubstr("'24x4o' is not HEIGHTxWIDTH"));
  EXPECT_THAT(message_of<ConfigError>([&] { with("{kind: list, sizes: [24x40, 24x40]}"); }), HasSubstr("given twice"));
  EXPECT_THAT(message_of<ConfigError>([&] { with("{min_side: 64, max_side: 32}"); }), HasSubstr("min_side"));
}

}  // namespace
}  // namespace fewstep
