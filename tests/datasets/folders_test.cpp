// Image folders, COCO captions and packed files.
#include <gmock/gmock.h>

#include <set>

#include "datasets/coco.h"
#include "datasets/fashion_mnist.h"
#include "datasets/image_folder.h"
#include "datasets/packed.h"
#include "src/config/config.h"
#include "src/io/image.h"
#include "src/tensor/ops.h"
#include "tests/datasets/temporary_folder.h"

namespace fewstep {
namespace {

using testing::HasSubstr;

struct Folders : TemporaryFolder {
  void image(const std::string& name, int64_t height = 20, int64_t width = 30, int64_t level = 100) const {
    std::filesystem::create_directories((folder / name).parent_path());
    io::write_image(folder / name, at::full({3, height, width}, level, at::kByte));
  }
  // All in one split, 8 x 8.
  ImageFolderConfig config() const {
    ImageFolderConfig c;
    c.folder = folder.string();
    c.images = {.image_size = 8, .heldout = 0, .test = 0};
    return c;
  }
  std::string error(const ImageFolderConfig& c, Split split = Split::train) const {
    return message_of<DataError>([&] { c.build(split); });
  }
};

TEST_F(Folders, ReadsCaptionsFromTextAndMetadata) {
  image("b.png");
  image("sub/a.jpg", 8, 8, 7);
  image("c.webp");
  write("b.txt", "one\n two \n\n");
  write("sub/a.txt", "an a");
  write("metadata.jsonl", "{\"file_name\": \"c.webp\", \"text\": \"a c\"}\n\n");
  const auto data = config().build(Split::train);
  ASSERT_EQ(data->size(), 3);
  EXPECT_EQ(data->captions(0), (std::vector<std::string>{"one", "two"}));
  EXPECT_EQ(data->get(1, 0, 0).caption, "a c");
  EXPECT_EQ(data->get(2, 0, 0).caption, "an a");
  EXPECT_EQ(data->get(0, 0, 0).image.sizes().vec(), (std::vector<int64_t>{3, 8, 8}));
  std::set<std::string> chosen;
  for (int64_t epoch = 0; epoch < 20; ++epoch) chosen.insert(data->get(0, 0, epoch).caption);
  EXPECT_EQ(chosen.size(), 2u);
  auto longest = config();
  write("b.txt", "short\nthe longest\nmiddle");
  longest.images.captions = CaptionChoice::longest;
  EXPECT_EQ(longest.build(Split::train)->get(0, 0, 3).caption, "the longest");
}

TEST_F(Folders, NamesWhatIsMissing) {
  EXPECT_THAT(error(config()), HasSubstr("no .png, .jpg, .jpeg or .webp images"));
  image("a.png");
  image("b.png");
  write("a.txt", "a");
  EXPECT_THAT(error(config()), HasSubstr("b.png: no caption: write b.txt"));
  auto lenient = config();
  lenient.require_captions = false;
  EXPECT_EQ(lenient.build(Split::train)->get(1, 0, 0).caption, "");
  write("b.txt", " \n");
  EXPECT_THAT(error(config()), HasSubstr("b.png: no caption"));
  auto nowhere = config();
  nowhere.folder += "/nowhere";
  EXPECT_THAT(error(nowhere), HasSubstr("nowhere: cannot be listed"));
}

TEST_F(Folders, NamesTheLineOfBadMetadata) {
  image("a.png");
  const auto with = [&](const std::string& line) {
    write("metadata.jsonl", "{\"file_name\": \"a.png\", \"text\": \"a\"}\n" + line + "\n");
    return error(config());
  };
  EXPECT_THAT(with("{oops"), HasSubstr("metadata.jsonl:2: not a JSON object"));
  EXPECT_THAT(with("{\"text\": \"x\"}"), HasSubstr("metadata.jsonl:2: no \"file_name\""));
  EXPECT_THAT(with("{\"file_name\": \"a.png\"}"), HasSubstr("neither \"text\" nor \"caption\""));
  EXPECT_THAT(with("{\"file_name\": \"a.png\", \"text\": 3}"), HasSubstr("the caption is 3"));
  EXPECT_THAT(with("{\"file_name\": \"q.png\", \"text\": \"q\"}"), HasSubstr("there is no file"));
  EXPECT_THAT(with("{\"file_name\": \"a.png\", \"text\": \"q\"}"), HasSubstr("a.png is given twice"));
}

TEST_F(Folders, NamesACorruptImage) {
  image("a.png");
  write("a.txt", "a");
  write("b.png", "\x89PNG\r\n\x1a\n this is not one");
  write("b.txt", "b");
  const auto data = config().build(Split::train);
  EXPECT_NO_THROW(data->get(0, 0, 0));
  EXPECT_THAT(message_of<DataError>([&] { data->get(1, 0, 0); }), HasSubstr((folder / "b.png").string()));
}

TEST_F(Folders, SplitsByHashAreDisjointCompleteAndStable) {
  for (int i = 0; i < 60; ++i) {
    image(fmt::format("{:02}.png", i), 8, 8);
    write(fmt::format("{:02}.txt", i), "x");
  }
  auto c = config();
  c.images.heldout = 0.3, c.images.test = 0.2;
  std::map<int64_t, int> seen;
  std::vector<int64_t> sizes;
  for (Split split : {Split::train, Split::heldout, Split::test}) {
    const auto data = c.build(split);
    sizes.push_back(data->size());
    for (int64_t i = 0; i < data->size(); ++i) ++seen[data->get(i, 0, 0).id];
  }
  EXPECT_EQ(seen.size(), 60u);
  for (const auto& [id, times] : seen) EXPECT_EQ(times, 1) << id;
  EXPECT_GT(sizes[0], sizes[1] / 2);
  EXPECT_GT(sizes[1], 5);
  EXPECT_GT(sizes[2], 3);
}

TEST_F(Folders, SplitFoldersComeFirst) {
  image("train/a.png");
  image("test/b.png");
  write("train/a.txt", "a");
  write("test/b.txt", "b");
  auto c = config();
  EXPECT_EQ(c.build(Split::train)->get(0, 0, 0).caption, "a");
  EXPECT_EQ(c.build(Split::test)->get(0, 0, 0).caption, "b");
  EXPECT_THAT(error(c, Split::heldout), HasSubstr("has split folders, but no 'heldout'"));
}

TEST_F(Folders, ReadsCocoAndNamesItsMistakes) {
  image("img/1.png");
  image("img/2.png");
  CocoConfig c;
  c.folder = (folder / "img").string();
  c.images = {.image_size = 8, .captions = CaptionChoice::first, .heldout = 0, .test = 0};
  const auto with = [&](const std::string& json) {
    c.annotations = write("captions.json", json).string();
    return message_of<DataError>([&] { c.build(Split::train); });
  };
  const std::string images = R"({"images": [{"id": 20, "file_name": "2.png"}, {"id": 10, "file_name": "1.png"}],)";
  with(images + R"("annotations": [{"image_id": 10, "caption": " one "}, {"image_id": 20, "caption": "two"},
                                   {"image_id": 10, "caption": "uno"}]})");
  const auto data = c.build(Split::train);
  ASSERT_EQ(data->size(), 2);
  EXPECT_EQ(data->get(0, 0, 0).id, 10);
  EXPECT_EQ(data->get(0, 0, 0).caption, "one");
  EXPECT_THAT(with("{"), HasSubstr("captions.json"));
  EXPECT_THAT(with("[]"), HasSubstr("no array \"images\""));
  EXPECT_THAT(with(images + "\"annotations\": 3}"), HasSubstr("no array \"annotations\""));
  EXPECT_THAT(with(images + R"("annotations": [{"image_id": 11, "caption": "x"}]})"),
              HasSubstr("annotations[0]: there is no image with id 11"));
  EXPECT_THAT(with(images + R"("annotations": [{"image_id": 10}]})"),
              HasSubstr("annotations[0]: \"caption\" is missing"));
  EXPECT_THAT(with(images + R"("annotations": [{"image_id": "10", "caption": "x"}]})"),
              HasSubstr("of the wrong type: \"10\""));
  EXPECT_EQ(with(images + R"("annotations": [{"image_id": 10, "caption": "x"}]})"), "(no error)");  // 20 has no caption: left out
  EXPECT_EQ(c.build(Split::train)->size(), 1);
  EXPECT_THAT(with(images + R"("annotations": []})"), HasSubstr("none of 2 images has a caption"));
  EXPECT_THAT(
      with(R"({"images": [{"id": 1, "file_name": "1.png"}, {"id": 1, "file_name": "2.png"}], "annotations": []})"),
      HasSubstr("images[1]: image id 1 is given twice"));
  EXPECT_THAT(
      with(R"({"images": [{"id": 1, "file_name": "9.png"}], "annotations": [{"image_id": 1, "caption": "x"}]})"),
      HasSubstr("is data.folder the folder"));
}

void expect_same_samples(const Dataset& a, const Dataset& b) {
  ASSERT_EQ(a.size(), b.size());
  for (int64_t i = 0; i < a.size(); ++i)
    for (int64_t epoch = 0; epoch < 3; ++epoch) {
      const Sample x = a.get(i, 4, epoch), y = b.get(i, 4, epoch);
      ASSERT_TRUE(at::equal(x.image, y.image)) << i;
      ASSERT_EQ(x.id, y.id);
      ASSERT_EQ(x.caption, y.caption) << i << " " << epoch;
      ASSERT_EQ(x.label, y.label);
      ASSERT_EQ(x.attributes, y.attributes);
      ASSERT_EQ(x.micro, y.micro);
    }
  EXPECT_EQ(a.class_names(), b.class_names());
  EXPECT_EQ(a.fingerprint(), b.fingerprint());
}

// Packs `source` and reads it as the kind 'hdf5'.
std::unique_ptr<Dataset> packed(const Dataset& source, const std::filesystem::path& path) {
  pack_dataset(source, path, {});
  PackedConfig config;
  config.train = path.string();
  return config.build(Split::train);
}

TEST_F(Folders, PackedFolderGivesTheSameSamples) {
  for (int i = 0; i < 9; ++i) {
    image(fmt::format("{}.png", i), 8 + i, 9, 20 * i);
    write(fmt::format("{}.txt", i), i % 2 ? "one" : "one\ntwo\nthree");
  }
  auto c = config();
  c.images.heldout = 0.4;
  const auto source = c.build(Split::train);
  expect_same_samples(*source, *packed(*source, folder / "out.h5"));
}

// The first samples of another data set.
class Head : public Dataset {
 public:
  Head(const Dataset& all, int64_t size) : all_(all), size_(size) {}
  int64_t size() const override { return size_; }
  Sample get(int64_t i, uint64_t seed, int64_t epoch) const override { return all_.get(i, seed, epoch); }
  std::vector<std::string> captions(int64_t i) const override { return all_.captions(i); }
  std::vector<std::string> class_names() const override { return all_.class_names(); }
  std::string description() const override { return "head"; }
  std::string fingerprint() const override { return "head"; }

 private:
  const Dataset& all_;
  int64_t size_;
};

TEST_F(Folders, PackedFashionGivesTheSameSamples) {
  if (!std::filesystem::exists(FashionMnistConfig().folder)) GTEST_SKIP() << "install dataset-fashion-mnist";
  const auto test = FashionMnistConfig().build(Split::test);
  const Head head(*test, 100);
  expect_same_samples(head, *packed(head, folder / "out.h5"));
}

TEST_F(Folders, PackedFilesThatAreMissingOrEmptyAreNamed) {
  PackedConfig split;
  EXPECT_THAT(message_of<ConfigError>([&] { split.build(Split::heldout); }), HasSubstr("data.heldout is not set"));
  split.train = (folder / "none.h5").string();
  EXPECT_THAT(message_of<DataError>([&] { split.build(Split::train); }), HasSubstr("none.h5"));
  image("a.png");
  write("a.txt", "a");
  const auto one = config().build(Split::train);
  EXPECT_THAT(message_of<DataError>([&] { pack_dataset(Head(*one, 0), folder / "empty.h5", {}); }),
              HasSubstr("the data set is empty"));
  EXPECT_FALSE(std::filesystem::exists(folder / "empty.h5"));
}

TEST_F(Folders, PackedTruncatedFileIsRefused) {
  image("a.png");
  write("a.txt", "a");
  const auto source = config().build(Split::train);
  packed(*source, folder / "out.h5");
  std::filesystem::resize_file(folder / "out.h5", std::filesystem::file_size(folder / "out.h5") / 2);
  PackedConfig c;
  c.train = (folder / "out.h5").string();
  EXPECT_THAT(message_of<DataError>([&] { c.build(Split::train); }), HasSubstr("out.h5"));
}

struct Root {
  std::unique_ptr<DatasetConfig> data;
};
void describe(config::Visitor& v, Root& root) { v.field("data", root.data, "data set", dataset_kinds()); }

TEST(Kinds, AreReadFromYaml) {
  const auto root = config::parse<Root>("data: {kind: fashion_mnist, image_size: 64, heldout: 100}");
  EXPECT_EQ(dynamic_cast<FashionMnistConfig&>(*root.data).image_size, 64);
  EXPECT_THAT(message_of<ConfigError>([] { config::parse<Root>("data: {kind: fashion}"); }), HasSubstr("fashion_mnist"));
  EXPECT_THAT(message_of<ConfigError>([] { config::parse<Root>("data: {kind: image_folder}"); }), HasSubstr("folder"));
  EXPECT_THAT(message_of<ConfigError>([] { config::parse<Root>("data: {kind: fashion_mnist, image_size: 27}"); }),
              HasSubstr("image_size"));
  EXPECT_THAT(message_of<ConfigError>([] {
                config::parse<Root>("data: {kind: coco, annotations: a, folder: b, heldout: 0.7, test: 0.7}");
              }),
              HasSubstr("must not be above 1"));
}

}  // namespace
}  // namespace fewstep
