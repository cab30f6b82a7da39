#include "src/io/hdf5.h"

#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <hdf5.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <thread>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/io/packed.h"
#include "src/tensor/ops.h"
#include "tests/io/scratch.h"

namespace fewstep::io {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

TEST(Hdf5, RoundTripOfTypesRowsAndAttributes) {
  Scratch scratch;
  {
    H5File file = H5File::create(scratch / "a.h5");
    for (at::ScalarType t : {at::kByte, at::kShort, at::kInt, at::kLong, at::kFloat, at::kDouble})
      file.write(c10::toString(t), at::arange(24, at::kFloat).reshape({4, 3, 2}).to(t), t == at::kFloat ? 4 : 0);
    file.create_dataset("grows", at::kFloat, {.row = {3}, .chunk_rows = 2});
    for (int i = 0; i < 5; ++i) file.append("grows", at::full({i, 3}, static_cast<double>(i)));
    file.write_strings("names", {"", "caf\xc3\xa9", "long " + std::string(1000, 'x')});
    file.set_attribute("text", std::string("x\ny"));
    file.set_attribute("text", std::string("replaced"));
    file.set_attribute("whole", int64_t{-7});
    file.set_attribute("real", 0.25, "grows");
    EXPECT_THROW(file.append("grows", at::zeros({2, 4})), Error);
    EXPECT_THROW(file.append("grows", at::zeros({2, 3}, at::kDouble)), Error);
    file.commit();
  }
  const H5File file = H5File::open(scratch / "a.h5");
  EXPECT_EQ(file.names(),
            (std::vector<std::string>{"Byte", "Double", "Float", "Int", "Long", "Short", "grows", "names"}));
  for (at::ScalarType t : {at::kByte, at::kShort, at::kInt, at::kLong, at::kFloat, at::kDouble}) {
    const Tensor want = at::arange(24, at::kFloat).reshape({4, 3, 2}).to(t);
    EXPECT_TRUE(file.read(c10::toString(t)).equal(want));
    EXPECT_TRUE(file.read_rows(c10::toString(t), 1, 3).equal(want.slice(0, 1, 3)));
    EXPECT_EQ(file.read_rows(c10::toString(t), 2, 2).sizes(), (std::vector<int64_t>{0, 3, 2}));
  }
  EXPECT_EQ(file.shape("grows"), (std::vector<int64_t>{10, 3}));
  EXPECT_EQ(file.read_rows("grows", 9, 10).sum().item<float>(), 12.0f);
  EXPECT_EQ(file.read_strings("names").at(1), "caf\xc3\xa9");
  EXPECT_EQ(file.read_strings("names").at(2).size(), 1005u);
  EXPECT_EQ(file.attribute_string("text"), "replaced");
  EXPECT_EQ(file.attribute_int("whole"), -7);
  EXPECT_EQ(std::get<double>(file.attribute("real", "grows")), 0.25);
  EXPECT_FALSE(file.has_attribute("real"));
}

TEST(Hdf5, ErrorsNamePathAndReason) {
  Scratch scratch;
  {
    H5File file = H5File::create(scratch / "a.h5");
    file.write("x", at::ones({2}));
    file.commit();
  }
  const H5File file = H5File::open(scratch / "a.h5");
  const auto reason = [&](auto call) {
    const std::string m = message_of<DataError>(call);
    EXPECT_TRUE(m.starts_with(scratch.path.string())) << m;
    return m;
  };
  EXPECT_THAT(reason([&] { file.read("y"); }), HasSubstr("no data set 'y' (has: x)"));
  EXPECT_THAT(reason([&] { file.read_rows("x", 1, 3); }), HasSubstr("rows 1...3 of data set 'x', which has 2"));
  EXPECT_THAT(reason([&] { file.attribute("k"); }), HasSubstr("no attribute 'k'"));
  EXPECT_THAT(reason([&] { file.read_strings("x"); }), HasSubstr("does not hold text"));
  EXPECT_THAT(reason([&] { H5File::open(scratch / "none.h5"); }), HasSubstr("no such file"));
  EXPECT_THAT(reason([&] { H5File::create(scratch / "no/folder.h5"); }), HasSubstr("No such file or directory"));
  write_raw(scratch / "text.h5", "not HDF5 at all");
  EXPECT_THAT(reason([&] { H5File::open(scratch / "text.h5"); }), HasSubstr("cannot be opened as HDF5: "));
}

TEST(Hdf5, FixedLengthTextOfOtherWriters) {
  Scratch scratch;
  const std::string path = (scratch / "f.h5").string();
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, 5);
  const hsize_t n = 2;
  const hid_t space = H5Screate_simple(1, &n, nullptr);
  const hid_t set = H5Dcreate2(file, "s", type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, "ab\0\0\0vwxyz");
  H5Dclose(set), H5Sclose(space), H5Tclose(type), H5Fclose(file);
  EXPECT_EQ(H5File::open(path).read_strings("s"), (std::vector<std::string>{"ab", "vwxyz"}));
}

TEST(Hdf5, UncommittedLeavesNothing) {
  Scratch scratch;
  { H5File::create(scratch / "a.h5").write("x", at::ones({2})); }
  EXPECT_TRUE(fs::is_empty(scratch.path));
}

TEST(Sidecar, EveryDamageIsFoundBeforeTheLibrarySeesIt) {
  Scratch scratch;
  {
    PackedWriter writer(scratch / "a.h5", {1, 4, 4});
    for (int i = 0; i < 3; ++i) writer.add(at::full({1, 4, 4}, i, at::kByte), {"c"});
    writer.commit();
  }
  const std::string good = read_text(scratch / "a.h5");
  EXPECT_NO_THROW(PackedImages(scratch / "a.h5"));
  for (size_t at = 0; at < good.size(); at += good.size() / 40 + 1) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x55);
    write_raw(scratch / "a.h5", bad);
    EXPECT_THAT(message_of<DataError>([&] { PackedImages(scratch / "a.h5"); }), HasSubstr("its sidecar says")) << at;
    write_raw(scratch / "a.h5", good.substr(0, at));
    EXPECT_THAT(message_of<DataError>([&] { PackedImages(scratch / "a.h5"); }), HasSubstr("damaged or incomplete"))
        << at;
  }
  write_raw(scratch / "a.h5", good);
  EXPECT_NO_THROW(PackedImages(scratch / "a.h5"));
  write_raw(scratch / "a.h5.sha256", "nonsense");
  EXPECT_THAT(message_of<DataError>([&] { PackedImages(scratch / "a.h5"); }), HasSubstr("64 hex digits"));
  fs::remove(scratch / "a.h5.sha256");
  EXPECT_NO_THROW(PackedImages(scratch / "a.h5"));  // a warning
}

TEST(Packed, FixedSize) {
  Scratch scratch;
  PackedWriter writer(scratch / "p.h5", {3, 5, 4});
  const Tensor images = at::randint(0, 256, {200, 3, 5, 4}, at::TensorOptions(at::kByte));
  for (int64_t i = 0; i < 200; ++i) {
    std::vector<std::string> captions;
    for (int64_t k = 0; k < i % 3; ++k) captions.push_back(fmt::format("caption {} of {} \xc3\xa9", k, i));
    writer.add(images[i], captions, i % 2 == 0 ? i : -1);
  }
  EXPECT_THROW(writer.add(images[0].slice(1, 0, 4), {}), Error);
  EXPECT_THROW(writer.add_encoded("x", {}), Error);
  writer.set_attribute("source", std::string("test"));
  writer.commit();
  const PackedImages packed(scratch / "p.h5");
  ASSERT_EQ(packed.size(), 200);
  EXPECT_FALSE(packed.encoded());
  EXPECT_EQ(packed.file().attribute_string("source"), "test");
  std::vector<std::thread> threads;  // readers in several threads share the file
  for (int64_t t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      for (int64_t i = t; i < 200; i += 3) {
        EXPECT_TRUE(packed.image(i).equal(images[i]));
        EXPECT_EQ(packed.captions(i).size(), static_cast<size_t>(i % 3));
        if (i % 3 == 2) {
          EXPECT_EQ(packed.captions(i)[1], fmt::format("caption 1 of {} \xc3\xa9", i));
        }
        EXPECT_EQ(packed.label(i), i % 2 == 0 ? i : -1);
      }
    });
  for (std::thread& t : threads) t.join();
  EXPECT_THROW(packed.image(200), Error);
}

TEST(Packed, EncodedOfDifferentSizes) {
  Scratch scratch;
  PackedWriter writer(scratch / "p.h5");
  std::vector<Tensor> images;
  for (int64_t i = 0; i < 20; ++i) {
    images.push_back(at::randint(0, 256, {i % 2 == 0 ? 1 : 3, 3 + i, 40 - i}, at::TensorOptions(at::kByte)));
    writer.add_encoded(encode_png(images.back()), {fmt::format("no. {}", i)});
  }
  writer.add_encoded("not a picture", {});
  writer.commit();
  const PackedImages packed(scratch / "p.h5");
  ASSERT_EQ(packed.size(), 21);
  EXPECT_TRUE(packed.encoded());
  for (int64_t i = 0; i < 20; ++i) {
    EXPECT_TRUE(packed.image(i).equal(images[static_cast<size_t>(i)]));
    EXPECT_EQ(packed.captions(i), (std::vector<std::string>{fmt::format("no. {}", i)}));
  }
  EXPECT_THAT(message_of<DataError>([&] { packed.image(20); }), HasSubstr("p.h5: picture 20: not a PNG"));
}

TEST(Packed, EmptyAndInconsistent) {
  Scratch scratch;
  PackedWriter(scratch / "e.h5").commit();
  EXPECT_EQ(PackedImages(scratch / "e.h5").size(), 0);
  {
    H5File file = H5File::create(scratch / "o.h5");
    file.write("x", at::ones({1}));
    file.commit();
  }
  EXPECT_THAT(message_of<DataError>([&] { PackedImages(scratch / "o.h5"); }), HasSubstr("not a packed data set"));
  const auto inconsistent = [&](std::vector<int64_t> offsets, int64_t count) {
    H5File file = H5File::create(scratch / "i.h5");
    file.set_attribute("format", std::string("fewstep packed images 1"));
    file.set_attribute("count", count);
    file.write("image_bytes", at::zeros({10}, at::kByte));
    file.write("image_offsets", at::tensor(offsets, at::kLong));
    file.create_dataset("caption_bytes", at::kByte, {});
    file.write("caption_offsets", at::zeros({1}, at::kLong));
    file.write("captions_of", at::zeros({count + 1}, at::kLong));
    file.write("labels", at::zeros({count}, at::kLong));
    file.commit();
    return PackedImages(scratch / "i.h5").size();
  };
  EXPECT_EQ(inconsistent({0, 4, 10}, 2), 2);
  for (const auto& offsets : std::vector<std::vector<int64_t>>{{0, 4}, {0, 11, 10}, {0, 4, 9}, {1, 4, 10}, {0, -3, 10}})
    EXPECT_THROW(inconsistent(offsets, 2), DataError);
}

TEST(Hdf5, FullDiskIsADataErrorAndTheOldFileStays) {
  Scratch scratch;
  {
    H5File file = H5File::create(scratch / "a.h5");
    file.write("x", at::ones({5}));
    file.commit();
  }
  const pid_t child = ::fork();
  if (child == 0) {
    at::set_num_threads(1);  // OpenMP's threads do not survive a fork
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{300'000, 300'000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    int code = 0;
    try {
      H5File file = H5File::create(scratch / "a.h5");
      file.write("x", at::ones({1 << 20}));
      file.commit();
    } catch (const DataError& e) {
      code = std::string(e.what()).find("a.h5: ") != std::string::npos ? 3 : 4;
    }
    ::_exit(code);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 3);
  EXPECT_EQ(H5File::open(scratch / "a.h5").read("x").numel(), 5);
}

TEST(Hdf5, HalvesAndGroupsSurvive) {
  const Scratch scratch;
  const Tensor values = at::tensor({0.0, 1.0, -2.5, 65504.0, 6e-8, 0.333}, at::kDouble).to(at::kHalf).view({3, 2});
  auto out = H5File::create(scratch / "a.h5");
  out.create_dataset("group/inner/x", at::kHalf, {.row = {2}});
  out.append("group/inner/x", values.slice(0, 0, 1));
  out.append("group/inner/x", values.slice(0, 1, 3));
  out.write("group/y", at::arange(3));
  EXPECT_TRUE(out.contains("group/inner/x"));
  EXPECT_FALSE(out.contains("group/none"));
  EXPECT_FALSE(out.contains("none/x"));
  out.commit();
  const auto in = H5File::open(scratch / "a.h5");
  EXPECT_EQ(in.dtype("group/inner/x"), at::kHalf);
  EXPECT_TRUE(in.read("group/inner/x").equal(values));
  EXPECT_TRUE(in.read_rows("group/inner/x", 1, 3).equal(values.slice(0, 1, 3)));
  EXPECT_EQ(in.read("group/y").numel(), 3);
}

}  // namespace
}  // namespace fewstep::io
