// The same pictures in a folder, an archive and an HDF5 file; features kept on disk and refused where they do not fit.
#include "eval/image_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "eval/compare.h"
#include "eval/feature_set.h"
#include "src/base/files.h"
#include "src/io/archive.h"
#include "src/io/packed.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"
#include "tests/support/small_coco.h"

namespace fewstep::eval {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;
const fs::path kGolden = FEWSTEP_SOURCE_DIR "/tests/golden";

class Sources : public testing::Test {
 protected:
  void SetUp() override {
    fs::remove_all(root_);
    support::write_small_coco(root_, 9);
    names_.clear();
    for (const fs::path& file : image_files(root_ / "val2017")) names_.push_back(file.filename());
    // Archives keep another order than that of the names, and things that are no pictures.
    std::vector<std::pair<std::string, std::string>> entries = {{"val/.hidden.png", "x"}, {"val/note.txt", "x"}};
    for (size_t i = 0; i < names_.size(); ++i) {
      const std::string& name = names_[(i * 4 + 2) % names_.size()];
      entries.emplace_back(name, read_text(root_ / "val2017" / name));
    }
    io::write_zip(root_ / "val.zip", entries);
    io::PackedWriter packed(root_ / "val.h5");
    for (const std::string& name : names_) packed.add_encoded(read_text(root_ / "val2017" / name), {"caption"});
    packed.commit();
    ASSERT_EQ(std::system(fmt::format("tar -C '{0}/val2017' -czf '{0}/val.tar.gz' .", root_.string()).c_str()), 0);
  }
  void TearDown() override { fs::remove_all(root_); }
  static std::unique_ptr<ImageEncoder> encoder(const std::string& pipeline = "") {
    return load_image_encoder(kGolden / "fid_inception_slim16", "inception", at::kCPU, {.pipeline = pipeline});
  }
  FeatureSet features(const fs::path& path, const FeatureOptions& options, const std::string& pipeline = "") const {
    const auto world = dist::World::single();
    return compute_features(open_images(path), *encoder(pipeline), options, *world);
  }
  const fs::path root_ = fs::temp_directory_path() / fmt::format("fewstep-sources-{}", ::getpid());
  std::vector<std::string> names_;
};

TEST_F(Sources, AllGiveTheSameFeaturesInTheSameOrder) {
  const Tensor expected = features(root_ / "val2017", {.batch = 1}).features;
  ASSERT_EQ(expected.size(0), 9);
  for (const char* name : {"val.zip", "val.tar.gz", "val.h5"})
    for (const int64_t threads : {1, 3})
      EXPECT_TRUE(at::equal(features(root_ / name, {.batch = 1, .threads = threads}).features, expected))
          << name << threads;
  EXPECT_EQ(open_images(root_ / "val.zip")->content_hash(), open_images(root_ / "val2017")->content_hash());
  EXPECT_EQ(open_images(root_ / "val.tar.gz")->content_hash(), open_images(root_ / "val2017")->content_hash());
  const auto archive = open_images(root_ / "val.zip");
  EXPECT_TRUE(at::equal(archive->read(7), open_images(root_ / "val2017")->read(7)));
  EXPECT_TRUE(at::equal(archive->read(1), open_images(root_ / "val2017")->read(1)));  // backwards
}

TEST_F(Sources, SharesAndSquares) {
  const std::shared_ptr<const ImageSource> all = open_images(root_ / "val2017");
  size_t total = 0;
  for (size_t r = 0; r < 4; ++r) total += every(all, r, 4)->size();
  EXPECT_EQ(total, 9u);
  EXPECT_EQ(every(all, 1, 4)->name(1), all->name(5));
  EXPECT_EQ(squares(all, 24)->read(3).sizes(), at::IntArrayRef({3, 24, 24}));
  EXPECT_NE(squares(all, 24)->content_hash(), all->content_hash());
}

TEST_F(Sources, FeaturesAreKeptUnderAllTheyDependOn) {
  const fs::path cache = root_ / "cache";
  const FeatureSet first = features(root_ / "val2017", {.cache = cache});
  EXPECT_FALSE(first.cached);
  const FeatureSet again = features(root_ / "val.zip", {.cache = cache});  // equal pictures elsewhere
  EXPECT_TRUE(again.cached);
  EXPECT_TRUE(at::equal(first.features, again.features));
  EXPECT_TRUE(at::equal(first.logits, again.logits));
  EXPECT_FALSE(features(root_ / "val2017", {.cache = cache}, "tf-legacy").cached);
  fs::remove(root_ / "val2017" / names_[0]);
  EXPECT_FALSE(features(root_ / "val2017", {.cache = cache}).cached);
  // A file under the wrong name: what it says of itself counts.
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(cache))
    if (entry.path().extension() == ".h5") files.push_back(entry.path());
  ASSERT_EQ(files.size(), 3u);
  const std::string other = read_text(files[0]);
  for (const fs::path& file : files) write_text_atomic(file, other);
  for (const fs::path& file : files) {
    fs::remove(file.string() + ".sha256");
    io::write_sidecar(file);
  }
  int64_t refused = 0;
  for (const char* pipeline : {"", "tf-legacy"})
    refused += message_of([&] { features(root_ / "val.zip", {.cache = cache}, pipeline); }).find("delete the file") !=
               std::string::npos;
  EXPECT_GE(refused, 1);
}

TEST_F(Sources, OtherThingsAreRefusedByName) {
  write_text_atomic(root_ / "a.txt", "x");
  EXPECT_THAT(message_of([&] { open_images(root_ / "a.txt"); }),
              HasSubstr("images are read from a folder of images, an archive"));
  EXPECT_THAT(message_of([&] { open_images(root_ / "none"); }), HasSubstr("no such folder or file"));
  io::write_zip(root_ / "empty.zip", {{"note.txt", "x"}});
  EXPECT_THAT(message_of([&] { open_images(root_ / "empty.zip"); }), HasSubstr("no .png, .jpg"));
  io::write_zip(root_ / "twice.zip", {{"a.png", "x"}, {"./a.png", "y"}});
  EXPECT_THAT(message_of([&] { open_images(root_ / "twice.zip"); }), HasSubstr("'a.png' is there twice"));
  io::write_zip(root_ / "torn.zip", {{"a.png", "x"}, {"b.png", "y"}});
  EXPECT_THAT(message_of([&] { features(root_ / "torn.zip", {}); }), HasSubstr("torn.zip: a.png"));
  EXPECT_THAT(message_of([&] { load_side(root_ / "a.txt", *encoder()); }), HasSubstr("images are read from"));
}

}  // namespace
}  // namespace fewstep::eval
