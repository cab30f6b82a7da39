// IDX files, measured attributes, captions, and Fashion-MNIST itself (Debian package dataset-fashion-mnist).
#include <gmock/gmock.h>
#include <zlib.h>

#include <nlohmann/json.hpp>
#include <set>

#include "datasets/fashion_mnist.h"
#include "datasets/idx.h"
#include "src/base/json.h"
#include "src/tensor/ops.h"
#include "tests/datasets/temporary_folder.h"

namespace fewstep {
namespace {

using testing::HasSubstr;

std::string idx(uint8_t type, const std::vector<uint32_t>& shape, size_t values, char value = 1) {
  std::string bytes = {0, 0, static_cast<char>(type), static_cast<char>(shape.size())};
  for (uint32_t n : shape)
    for (int shift : {24, 16, 8, 0}) bytes.push_back(static_cast<char>(n >> shift));
  return bytes + std::string(values, value);
}

std::string gzip(const std::string& bytes) {
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, bytes.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

struct Idx : TemporaryFolder {
  std::string error(const std::string& bytes, size_t rank = 3) {
    const auto path = write("file", bytes);
    const std::string message = message_of<DataError>([&] { read_idx(path, rank); });
    EXPECT_THAT(message, HasSubstr(path.string()));
    return message;
  }
};

TEST_F(Idx, ReadsPlainAndCompressed) {
  const std::string good = idx(8, {2, 3, 4}, 24, 7);
  for (const std::string& bytes : {good, gzip(good)}) {
    const IdxArray array = read_idx(write("file", bytes), 3);
    EXPECT_EQ(array.shape, (std::vector<int64_t>{2, 3, 4}));
    EXPECT_EQ(array.values, std::vector<uint8_t>(24, 7));
  }
  EXPECT_TRUE(read_idx(write("file", idx(8, {0, 3, 4}, 0)), 3).values.empty());
}

TEST_F(Idx, RefusesMalformedFilesWithAReason) {
  const std::string good = idx(8, {2, 3, 4}, 24), packed = gzip(good);
  EXPECT_THAT(error("ab"), HasSubstr("too short"));
  EXPECT_THAT(error("\x89PNG"), HasSubstr("begins with 89 50"));
  EXPECT_THAT(error(idx(0x0D, {2, 3, 4}, 24)), HasSubstr("0x0d (float)"));
  EXPECT_THAT(error(idx(0x01, {2, 3, 4}, 24)), HasSubstr("0x01 (unknown)"));
  EXPECT_THAT(error(good, 1), HasSubstr("3 dimensions, expected 1"));
  EXPECT_THAT(error(good.substr(0, 10)), HasSubstr("truncated in the IDX header"));
  EXPECT_THAT(error(good.substr(0, 30)), HasSubstr("truncated: 14 of 24 values (2 x 3 x 4)"));
  EXPECT_THAT(error(good + "x"), HasSubstr("bytes follow the last value"));
  EXPECT_THAT(error(idx(8, {0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF}, 3)), HasSubstr("are over"));
  EXPECT_THAT(error(idx(8, {0x10000, 0x1000, 8}, 3)), HasSubstr("truncated: 3 of"));  // 2 GiB promised: not allocated
  EXPECT_THAT(error(packed.substr(0, packed.size() / 2)), HasSubstr("gzip stream is truncated"));
  EXPECT_THAT(error(packed.substr(0, packed.size() - 1)), HasSubstr("gzip stream is truncated"));
  EXPECT_THAT(error(packed + "tail"), HasSubstr("4 bytes follow the gzip stream"));
  EXPECT_THAT(error(gzip(good + "x")), HasSubstr("bytes follow the last value"));
  std::string damaged = packed;
  damaged[damaged.size() - 6] ^= 1;  // the CRC
  EXPECT_THAT(error(damaged), HasSubstr("corrupt"));
}

// --- attributes ---

// A bright rectangle on black.
Tensor rectangle(int64_t size, int64_t height, int64_t width, int64_t level) {
  Tensor image = at::zeros({1, size, size}, at::kByte);
  image.slice(1, 2, 2 + height).slice(2, 3, 3 + width).fill_(level);
  return image;
}
Measurement measured(const Tensor& image) {
  return measure_garment({image.const_data_ptr<uint8_t>(), static_cast<size_t>(image.numel())}, image.size(1),
                         image.size(2));
}

TEST(Attributes, OfARectangleAreItsSidesAndLevel) {
  const Measurement m = measured(rectangle(28, 20, 9, 150));
  EXPECT_DOUBLE_EQ(m.tone, 150);
  EXPECT_NEAR(m.height, 20, 1e-9);
  EXPECT_NEAR(m.width, 9, 1e-9);
  const Measurement none = measured(at::zeros({1, 28, 28}, at::kByte));
  EXPECT_EQ(none.tone + none.height + none.width, 0);
}

TEST(Attributes, IgnorePaddingFaintGroundAndEdges) {
  const Measurement m = measured(rectangle(28, 20, 9, 150)), padded = measured(rectangle(32, 20, 9, 150));
  EXPECT_EQ(m.height, padded.height);
  Tensor image = rectangle(28, 20, 9, 150);
  image = at::where(image.eq(0), at::scalar_tensor(20, at::kByte), image);  // a generator's ground is not quite black
  EXPECT_DOUBLE_EQ(measured(image).tone, 150);
  EXPECT_NEAR(measured(image).height, 20, 1e-9);
  image.slice(1, 2, 22).slice(2, 3, 4).fill_(80);  // a half-covered edge column
  EXPECT_DOUBLE_EQ(measured(image).tone, 150);
}

TEST(Attributes, ThresholdsSplitAndTiesGoUp) {
  std::vector<Measurement> all;
  std::vector<uint8_t> labels;
  for (int i = 0; i < 9; ++i) {
    all.push_back({10.0 * i, 1.0 * i, 5.0});
    labels.push_back(static_cast<uint8_t>(i % 2));
  }
  const AttributeThresholds t = find_thresholds(all, labels);
  EXPECT_EQ(t.tone_dark, 30);
  EXPECT_EQ(t.tone_bright, 60);
  EXPECT_EQ(t.height[0], 4);  // of 0 2 4 6 8
  EXPECT_EQ(t.height[1], 5);  // of 1 3 5 7: the upper of the two in the middle
  EXPECT_EQ(name_attributes({30, 4, 5}, 0, t), (Attributes{{"tone", "mid"}, {"height", "long"}, {"width", "wide"}}));
  EXPECT_EQ(name_attributes({29.9, 3.9, 4.9}, 0, t),
            (Attributes{{"tone", "dark"}, {"height", "short"}, {"width", "narrow"}}));
  EXPECT_EQ(name_attributes({60, 9, 9}, 0, t).at("tone"), "bright");
  EXPECT_THROW(name_attributes({}, 10, t), Error);
}

TEST(Attributes, OfGreyAndColourImagesAreTheSame) {
  AttributeThresholds t;
  t.tone_dark = 100, t.tone_bright = 200;
  t.height.fill(12), t.width.fill(12);
  const Tensor grey = rectangle(28, 20, 9, 150);
  const Attributes expected = {{"tone", "mid"}, {"height", "long"}, {"width", "narrow"}};
  EXPECT_EQ(measure_attributes(grey, 3, t), expected);
  EXPECT_EQ(measure_attributes(grey.expand({3, 28, 28}), 3, t), expected);
  EXPECT_THROW(measure_attributes(grey.to(at::kFloat), 3, t), Error);
}

TEST(Attributes, ThresholdsSurviveJson) {
  AttributeThresholds t;
  t.tone_dark = 1.0 / 3, t.tone_bright = 200.25;
  for (size_t c = 0; c < 10; ++c)
    t.height[c] = 20 + 0.1 * static_cast<double>(c), t.width[c] = 1.0 / static_cast<double>(c + 1);
  const AttributeThresholds back = thresholds_from_json(Json::parse(to_json(t).dump()), "x");
  EXPECT_EQ(back.tone_dark, t.tone_dark);
  EXPECT_EQ(back.height, t.height);
  EXPECT_EQ(back.width, t.width);
  Json broken = to_json(t);
  broken["width_median"].erase(0);
  EXPECT_THAT(message_of<DataError>([&] { thresholds_from_json(broken, "a.json"); }),
              HasSubstr("a.json: width_median has 9"));
  EXPECT_THAT(message_of<DataError>([&] { thresholds_from_json(Json::object(), "a.json"); }), HasSubstr("a.json"));
}

// --- captions ---

TEST(Captions, EachAttributeIsNamedByHalfOfTheTemplatesAndParsesBack) {
  const Attributes attributes = {{"tone", "dark"}, {"height", "long"}, {"width", "wide"}};
  std::set<std::string> distinct;
  for (int64_t label = 0; label < kFashionClasses; ++label) {
    std::map<std::string, int64_t> named;
    for (int64_t form = 0; form < caption_template_count(); ++form) {
      const std::string caption = write_caption(form, label, attributes);
      distinct.insert(caption);
      const auto parsed = parse_caption(caption);
      ASSERT_TRUE(parsed) << caption;
      EXPECT_EQ(parsed->label, label) << caption;
      for (const auto& [name, word] : parsed->named) {
        EXPECT_EQ(word, attributes.at(name)) << caption;
        ++named[name];
      }
    }
    for (const AttributeKind& kind : fashion_attribute_kinds())
      EXPECT_EQ(2 * named[std::string(kind.name)], caption_template_count()) << label << kind.name;
  }
  EXPECT_EQ(static_cast<int64_t>(distinct.size()), kFashionClasses * caption_template_count());
}

TEST(Captions, AreEnglish) {
  const Attributes a = {{"tone", "bright"}, {"height", "short"}, {"width", "narrow"}};
  EXPECT_EQ(write_caption(0, 9, a), "an ankle boot");
  EXPECT_EQ(write_caption(7, 9, a), "a bright short narrow ankle boot");
  EXPECT_EQ(write_caption(8 + 1, 1, a), "a photo of bright trousers");
  EXPECT_EQ(write_caption(16 + 7, 1, a), "these are trousers, bright, short and narrow");
  EXPECT_EQ(write_caption(16, 0, a), "this is a t-shirt");
  EXPECT_FALSE(parse_caption("a dark thing"));
  EXPECT_FALSE(parse_caption("a dress and a coat"));
  EXPECT_FALSE(parse_caption("a dark bright coat"));
  EXPECT_EQ(parse_caption("A DARK T-Shirt!")->label, 0);
}

TEST(Captions, CompositionalPromptsNameAHeldOutPair) {
  const auto prompts = compositional_prompts();
  EXPECT_GE(prompts.size(), 20u);
  for (const std::string& prompt : prompts) {
    const auto parsed = parse_caption(prompt);
    ASSERT_TRUE(parsed) << prompt;
    EXPECT_TRUE(is_held_out(parsed->label, parsed->named)) << prompt;
  }
}

// --- the data set ---

struct Fashion : TemporaryFolder {
  // Four files of blank pictures, one pair replaced.
  FashionMnistConfig small(const std::string& images = idx(8, {4, 28, 28}, 4 * 784, 90),
                           const std::string& labels = idx(8, {4}, 4, 3)) {
    for (const std::string prefix : {"train", "t10k"}) {
      write(prefix + "-images-idx3-ubyte", images);
      write(prefix + "-labels-idx1-ubyte", labels);
    }
    FashionMnistConfig config;
    config.folder = folder.string();
    config.heldout = 1;
    return config;
  }
};

TEST_F(Fashion, SaysHowToGetTheData) {
  FashionMnistConfig config;
  config.folder = folder.string();
  const std::string message = message_of<DataError>([&] { config.build(Split::train); });
  EXPECT_THAT(message, HasSubstr("apt-get install dataset-fashion-mnist"));
  EXPECT_THAT(message, HasSubstr("data.folder"));
}

TEST_F(Fashion, RefusesFilesThatDoNotBelongTogether) {
  EXPECT_THAT(message_of<DataError>([&] {
                small(idx(8, {4, 28, 28}, 4 * 784), idx(8, {5}, 5)).build(Split::train);
              }),
              HasSubstr("4 images, but"));
  EXPECT_THAT(message_of<DataError>([&] {
                small(idx(8, {4, 28, 28}, 4 * 784), idx(8, {4}, 4, 10)).build(Split::train);
              }),
              HasSubstr("label 10 of image 0"));
  auto config = small();
  config.heldout = 5;
  EXPECT_THAT(message_of<ConfigError>([&] { config.build(Split::train); }), HasSubstr("data.heldout is 5"));
}

TEST_F(Fashion, PadsToTheMiddle) {
  const auto data = small().build(Split::heldout);
  ASSERT_EQ(data->size(), 1);
  const Sample sample = data->get(0, 0, 0);
  EXPECT_EQ(sample.id, 3);
  EXPECT_EQ(sample.image.sizes().vec(), (std::vector<int64_t>{1, 32, 32}));
  EXPECT_TRUE(sample.image.slice(1, 2, 30).slice(2, 2, 30).eq(90).all().item<bool>());
  EXPECT_EQ(sample.image.sum().item<int64_t>(), 784 * 90);
}

struct RealFashion : testing::Test {
  static void SetUpTestSuite() {
    if (!std::filesystem::exists(FashionMnistConfig().folder)) return;
    train = FashionMnistConfig().build(Split::train);
  }
  static void TearDownTestSuite() { train.reset(); }
  void SetUp() override {
    if (!train) GTEST_SKIP() << "install dataset-fashion-mnist";
  }
  static inline std::unique_ptr<Dataset> train;
};

TEST_F(RealFashion, TrainsWithoutTheHeldOutPairs) {
  FashionMnistConfig config;
  config.holdout_pairs = false;
  const auto all = config.build(Split::train), heldout = config.build(Split::heldout), test = config.build(Split::test);
  EXPECT_EQ(all->size(), 51000);
  EXPECT_EQ(heldout->size(), 9000);
  EXPECT_EQ(test->size(), 10000);
  EXPECT_NE(all->fingerprint(), train->fingerprint());
  const auto count_held_out = [](const Dataset& data) {
    const auto& fashion = dynamic_cast<const FashionMnist&>(data);
    int64_t count = 0;
    for (int64_t i = 0; i < data.size(); ++i) count += is_held_out(fashion.label(i), fashion.attributes(i));
    return count;
  };
  EXPECT_EQ(count_held_out(*train), 0);
  EXPECT_EQ(train->size() + count_held_out(*all), all->size());
  EXPECT_GE(count_held_out(*test), 400);
}

TEST_F(RealFashion, AttributesAreInformativeInEveryClass) {
  const auto test = FashionMnistConfig().build(Split::test);
  const auto& fashion = dynamic_cast<const FashionMnist&>(*test);
  std::map<int64_t, std::map<std::string, int64_t>> counts;
  for (int64_t i = 0; i < test->size(); ++i)
    for (const auto& [name, word] : fashion.attributes(i)) ++counts[fashion.label(i)][word];
  for (auto& [label, words] : counts) {
    for (const char* word : {"short", "long", "narrow", "wide"}) EXPECT_NEAR(words[word], 500, 60) << label << word;
    for (const char* word : {"dark", "mid", "bright"}) EXPECT_GE(words[word], 150) << label << word;
  }
}

TEST_F(RealFashion, CaptionsAreTrueAndChosenByEpoch) {
  const auto& fashion = dynamic_cast<const FashionMnist&>(*train);
  std::map<std::string, int64_t> named;
  int64_t changed = 0;
  for (int64_t i = 0; i < 4000; ++i) {
    const Sample sample = train->get(i, 7, 0);
    const auto parsed = parse_caption(sample.caption);
    ASSERT_TRUE(parsed) << sample.caption;
    EXPECT_EQ(parsed->label, sample.label);
    // Exactly what evaluation measures on the padded picture.
    const Attributes again = measure_attributes(sample.image, sample.label, fashion.thresholds());
    EXPECT_EQ(again, sample.attributes);
    for (const auto& [name, word] : parsed->named) {
      EXPECT_EQ(word, again.at(name));
      ++named[name];
    }
    EXPECT_EQ(train->get(i, 7, 0).caption, sample.caption);
    changed += train->get(i, 7, 1).caption != sample.caption;
  }
  for (const auto& [name, count] : named) EXPECT_NEAR(static_cast<double>(count), 2000, 130) << name;  // 4 sigma
  EXPECT_GT(changed, 3500);
}

}  // namespace
}  // namespace fewstep
