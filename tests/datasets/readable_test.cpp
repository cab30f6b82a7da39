// Samples that cannot be read: the run ends, or another sample takes the place, the same one everywhere.
#include "datasets/readable_samples.h"

#include <gmock/gmock.h>

#include <atomic>
#include <fstream>
#include <set>

#include "datasets/image_folder.h"
#include "datasets/loader.h"
#include "datasets/packed.h"
#include "src/config/config.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"
#include "tests/support/scratch.h"

namespace fewstep {
namespace {

using ::testing::HasSubstr;

// Two buckets, by even and odd index; the ones in `broken` cannot be read.
class Fragile : public Dataset {
 public:
  Fragile(int64_t size, std::set<int64_t> broken) : size_(size), broken_(std::move(broken)) {}
  int64_t size() const override { return size_; }
  std::vector<BucketSize> buckets() const override { return {{2, 2}, {1, 4}}; }
  int64_t bucket_of(int64_t index) const override { return index % 2; }
  Sample get(int64_t index, uint64_t, int64_t) const override {
    if (broken_.contains(index)) fail<DataError>("picture {} is corrupt", index);
    Sample sample;
    sample.id = index;
    sample.image = at::zeros(index % 2 ? at::IntArrayRef{1, 1, 4} : at::IntArrayRef{1, 2, 2}, at::kByte);
    return sample;
  }
  std::string description() const override { return "fragile"; }
  std::string fingerprint() const override { return "0"; }

 private:
  int64_t size_;
  std::set<int64_t> broken_;
};

std::unique_ptr<Dataset> skipping(int64_t size, std::set<int64_t> broken, double max_broken = 0.1) {
  return readable_samples(std::make_unique<Fragile>(size, std::move(broken)), {.on_error = OnError::skip, .max_broken = max_broken});
}

TEST(Readable, FailIsTheDataSetItself) {
  const auto data = readable_samples(std::make_unique<Fragile>(10, std::set<int64_t>{4}), {});
  EXPECT_THAT(message_of<DataError>([&] { data->get(4, 0, 0); }), HasSubstr("picture 4 is corrupt"));
}

TEST(Readable, AnotherSampleOfTheBucketTakesThePlace) {
  const auto data = skipping(100, {4, 17, 50});
  std::set<int64_t> chosen;
  for (int64_t epoch = 0; epoch < 30; ++epoch)
    for (int64_t broken : {4, 17, 50}) {
      const Sample sample = data->get(broken, 1, epoch);
      EXPECT_NE(sample.id, broken);
      EXPECT_EQ(sample.id % 2, broken % 2);
      EXPECT_EQ(sample.id, skipping(100, {4, 17, 50})->get(broken, 1, epoch).id);  // no state
      chosen.insert(sample.id);
    }
  EXPECT_GT(chosen.size(), 30u);  // not one and the same each time
  EXPECT_EQ(data->get(5, 1, 0).id, 5);
  EXPECT_THAT(message_of<DataError>([&] { data->strict().get(4, 0, 0); }), HasSubstr("picture 4"));
}

TEST(Readable, TooManyAreAnError) {
  const auto data = skipping(40, {0, 1, 2, 3, 4}, 0.1);
  for (int64_t epoch = 0; epoch < 3; ++epoch) EXPECT_NO_THROW(data->get(1, 0, epoch));  // the same one is counted once
  const std::string error = message_of<DataError>([&] {
    for (int64_t i = 0; i < 5; ++i) data->get(i, 0, 0);
  });
  EXPECT_THAT(error, HasSubstr("5 of 40 samples could not be read, more than data.max_broken 0.1 allows"));
  EXPECT_THAT(error, HasSubstr("the last: picture "));
  EXPECT_THAT(message_of<DataError>([] { skipping(4, {0, 2}, 1.0)->get(0, 0, 0); }), HasSubstr("no other of the 2 samples of its bucket"));
}

TEST(Readable, BatchesAreTheSameForAnyWorkersRanksAndResume) {
  const std::set<int64_t> broken = {3, 8, 21, 40};
  const auto stream = [&](int world, int64_t workers, int64_t first) {
    std::vector<std::vector<int64_t>> steps(static_cast<size_t>(20 - first), std::vector<int64_t>(8));
    for (int rank = 0; rank < world; ++rank) {
      const auto data = skipping(60, broken);
      Loader loader(*data, {.batch_size = 8, .rank = rank, .world_size = world, .seed = 2, .first_step = first, .workers = workers});
      for (auto& step : steps) {
        const Batch batch = loader.next();
        for (int64_t i = 0; i < batch.size(); ++i) step[static_cast<size_t>(i * world + rank)] = batch.ids[i].item<int64_t>();
      }
    }
    return steps;
  };
  const auto reference = stream(1, 0, 0);
  for (const auto& step : reference)
    for (int64_t id : step) EXPECT_FALSE(broken.contains(id));
  for (int world : {1, 2, 4})
    for (int64_t workers : {1, 3}) EXPECT_EQ(stream(world, workers, 0), reference);
  EXPECT_TRUE(std::equal(reference.begin() + 7, reference.end(), stream(2, 2, 7).begin()));
}

// A real file that is cut short: its header is whole, so it has a bucket, and its data ends in the middle.
TEST(Readable, TruncatedFilesInAFolder) {
  const testing::ScratchFolder scratch("readable");
  for (int64_t i = 0; i < 30; ++i) io::write_image(scratch / fmt::format("{:02}.jpg", i), at::randint(0, 255, {3, 64, 64 + i}, at::kByte));
  const auto cut = scratch / "07.jpg";
  std::filesystem::resize_file(cut, std::filesystem::file_size(cut) / 2);
  std::ofstream(scratch / "08.jpg") << "not a picture";
  const auto build = [&](const std::string& more) {
    ImageFolderConfig c;
    config::read_string("{folder: " + scratch.path().string() + ", require_captions: false, heldout: 0, test: 0, image_size: 32" + more + "}", "test",
                        [](config::Visitor& v, void* p) { static_cast<ImageFolderConfig*>(p)->describe(v); }, &c);
    return c.build(Split::train);
  };
  const std::string buckets = ", buckets: {kind: list, sizes: [32x32, 32x40]}";
  EXPECT_THAT(message_of<DataError>([&] { build("")->get(7, 0, 0); }), HasSubstr("07.jpg"));
  EXPECT_THAT(message_of<DataError>([&] { build(buckets); }), HasSubstr("the size of 1 of 30 images cannot be read"));  // 08
  EXPECT_THAT(message_of<DataError>([&] { build(buckets + ", on_error: skip"); }), HasSubstr("more than data.max_broken 0.01"));
  const auto skip = build(buckets + ", on_error: skip, max_broken: 0.2");
  ASSERT_EQ(skip->size(), 29);
  const int64_t bucket = skip->bucket_of(7);
  const Sample sample = skip->get(7, 0, 0);
  EXPECT_NE(sample.id, 7);
  EXPECT_EQ(sample.image.size(2), skip->buckets()[static_cast<size_t>(bucket)].width);
  const auto plain = build(", on_error: skip, max_broken: 0.2");
  EXPECT_EQ(plain->size(), 30);  // found when it is read
  EXPECT_NE(plain->get(8, 0, 0).id, 8);
  EXPECT_THAT(message_of<DataError>([&] { pack_dataset(*plain, scratch / "out.h5", {}); }), HasSubstr("07.jpg"));  // not twice another
}

}  // namespace
}  // namespace fewstep
