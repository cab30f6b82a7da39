// Pictures against Pillow's (tests/golden/io, made by tools/golden/images.py), damaged files, resampling.
#include "src/io/image.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/io/pixels.h"
#include "src/io/resize.h"
#include "src/io/safetensors.h"
#include "src/tensor/ops.h"
#include "tests/io/scratch.h"

namespace fewstep::io {
namespace {

using ::testing::HasSubstr;

const Safetensors& golden(const char* name) {
  static std::map<std::string, Safetensors> files;
  const std::string path = std::string(FEWSTEP_SOURCE_DIR "/tests/golden/io/") + name + ".safetensors";
  return files.try_emplace(name, path).first->second;
}
std::string_view bytes_of(const Tensor& t) { return {static_cast<const char*>(t.const_data_ptr()), t.nbytes()}; }
std::string golden_file(const std::string& name) {
  const Tensor t = golden("images").get("file." + name);  // named: the view must not outlive it
  return std::string(bytes_of(t));
}
int64_t max_difference(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.sizes(), b.sizes());
  return (a.to(at::kInt) - b.to(at::kInt)).abs().max().item<int64_t>();
}
Tensor noise(at::IntArrayRef shape) { return at::randint(0, 256, shape, at::TensorOptions(at::kByte)); }

std::vector<std::string> golden_names() {
  std::vector<std::string> names;
  for (const std::string& n : golden("images").names())
    if (n.starts_with("file.")) names.push_back(n.substr(5));
  return names;
}

TEST(ImageDecode, EqualsPillow) {
  for (const std::string& name : golden_names()) {
    SCOPED_TRACE(name);
    const Tensor want = golden("images").get("expected." + name);
    const Tensor got = decode_image(golden_file(name), name, Channels::as_is);
    // CMYK: one rounding instead of two. Lossy WebP: versions of libwebp differ in chroma upsampling by a little.
    const int64_t limit = name == "cmyk.jpg" ? 1 : name == "lossy.webp" ? 2 : 0;
    EXPECT_LE(max_difference(got, want), limit);
    EXPECT_EQ(decode_image(golden_file(name), name, Channels::rgb).size(0), 3);
    EXPECT_EQ(decode_image(golden_file(name), name, Channels::grey).size(0), 1);
  }
}

TEST(ImageDecode, SizeFromTheHeader) {
  Scratch scratch;
  for (const std::string& name : golden_names()) {
    write_raw(scratch / name, golden_file(name));
    const ImageSize size = read_image_size(scratch / name);
    const Tensor want = golden("images").get("expected." + name);
    EXPECT_EQ(size.width, want.size(2)) << name;
    EXPECT_EQ(size.height, want.size(1)) << name;
  }
}

TEST(ImageDecode, EveryPrefixIsRefused) {
  for (const char* name : {"rgb.png", "palette_transparent.png", "420.jpg", "progressive.jpg", "cmyk.jpg", "exif6.jpg",
                           "lossless.webp", "lossy.webp", "alpha.webp"}) {
    const std::string bytes = golden_file(name);
    size_t read = 0;
    for (size_t n = 0; n < bytes.size(); ++n) {
      // A heap copy of exactly n bytes: a read beyond it is seen by the address sanitizer.
      const std::vector<char> prefix(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(n));
      try {
        decode_image({prefix.data(), n}, name);
        ++read;
      } catch (const DataError& e) {
        ASSERT_TRUE(std::string(e.what()).starts_with(std::string(name) + ": ")) << e.what();
      }
    }
    EXPECT_LE(read, 2u) << name;  // the end marker or padding may be missing
  }
}

TEST(ImageDecode, DamagedBytesNeverCrash) {
  at::manual_seed(3);
  for (const std::string& name : golden_names()) {
    const std::string bytes = golden_file(name);
    for (int trial = 0; trial < 60; ++trial) {
      std::string bad = bytes;
      for (int k = 0; k <= trial % 4; ++k) {
        const auto draw = at::randint(0, 1 << 30, {2}, at::kLong);
        bad[static_cast<size_t>(draw[0].item<int64_t>()) % bad.size()] = static_cast<char>(draw[1].item<int64_t>());
      }
      try {
        decode_image(bad, name);
      } catch (const DataError&) {
      }
    }
  }
}

TEST(ImageDecode, ReasonsNameTheFile) {
  Scratch scratch;
  const auto reason = [&](const std::string& name, std::string_view bytes) {
    write_raw(scratch / name, bytes);
    const std::string message = message_of<DataError>([&] { read_image(scratch / name); });
    EXPECT_TRUE(message.starts_with((scratch / name).string())) << message;
    return message;
  };
  EXPECT_THAT(reason("empty.png", ""), HasSubstr("the file is empty"));
  EXPECT_THAT(reason("text.png", "hello"), HasSubstr("not a PNG, JPEG or WebP"));
  EXPECT_THAT(reason("pointer.jpg", "version https://git-lfs.github.com/spec/v1\n"), HasSubstr("Git LFS pointer"));
  EXPECT_THAT(reason("cut.jpg", golden_file("420.jpg").substr(0, 900)), HasSubstr("corrupt JPEG: "));
  EXPECT_THAT(reason("cut.png", golden_file("rgb.png").substr(0, 300)), HasSubstr("corrupt PNG: truncated"));
  EXPECT_THAT(reason("cut.webp", golden_file("lossless.webp").substr(0, 100)), HasSubstr("corrupt WebP: truncated"));
  std::string flipped = golden_file("rgb.png");
  flipped[flipped.size() - 13] ^= 4;  // the checksum of the last IDAT chunk stands before the 12 bytes of IEND
  EXPECT_THAT(reason("crc.png", flipped), HasSubstr("CRC"));
  std::string large = golden_file("rgb.png");  // 2^24 x 2^8 + more pixels; the CRC of IHDR no longer fits either
  large[16] = 1;
  EXPECT_THROW(decode_image(large, "large.png"), DataError);
  EXPECT_THAT(message_of<DataError>([] { check_image_size(1 << 20, 1 << 9, "big.jpg"); }),
              HasSubstr("the limit is 2^28"));
  EXPECT_THAT(message_of<DataError>([&] { read_image(scratch / "none.png"); }), HasSubstr("none.png"));
}

TEST(ImageEncode, RoundTrips) {
  Scratch scratch;
  at::manual_seed(0);
  for (int64_t channels : {1, 3}) {
    for (auto [h, w] : {std::pair<int64_t, int64_t>{1, 1}, {5, 9}, {33, 17}}) {
      const Tensor image = noise({channels, h, w});
      write_image(scratch / "a.png", image);
      EXPECT_TRUE(read_image(scratch / "a.png", Channels::as_is).equal(image));
      EXPECT_EQ(encode_png(image), read_text(scratch / "a.png"));
      write_image(scratch / "a.webp", image, 100);
      EXPECT_TRUE(read_image(scratch / "a.webp", Channels::rgb).equal(image.expand({3, h, w})));
    }
    const Tensor smooth = resize(noise({channels, 6, 8}), 64, 48);
    write_image(scratch / "a.JPG", smooth, 95);
    const Tensor back = read_image(scratch / "a.JPG", Channels::as_is);
    EXPECT_EQ(back.size(0), channels);
    EXPECT_LE((back.to(at::kFloat) - smooth.to(at::kFloat)).abs().mean().item<double>(), 2.0);
  }
  EXPECT_THAT(message_of<DataError>([&] {
                write_image(scratch / "a.gif", noise({3, 2, 2}));
              }),
              HasSubstr("known: .png"));
  EXPECT_THROW(write_image(scratch / "a.png", at::zeros({3, 2, 2})), Error);
  EXPECT_THROW(write_image(scratch / "missing/a.png", noise({3, 2, 2})), DataError);
}

TEST(Resize, EqualsPillowBitForBit) {
  const std::map<std::string, Resample> filters = {
      {"bilinear", Resample::bilinear}, {"bicubic", Resample::bicubic}, {"lanczos", Resample::lanczos}};
  const Safetensors& file = golden("resize");
  int compared = 0;
  for (const bool avx2 : {true, false}) {
    const bool before = use_avx2(avx2);
    for (const std::string& name : file.names()) {
      if (!name.starts_with("expected.")) continue;
      SCOPED_TRACE(name);
      const size_t dot = name.find('.', 9), dot2 = name.find('.', dot + 1);
      const Tensor in = file.get("input." + name.substr(9, dot - 9)), want = file.get(name);
      const Resample filter = filters.at(name.substr(dot + 1, dot2 - dot - 1));
      EXPECT_TRUE(resize(in, want.size(2), want.size(1), filter).equal(want)) << "AVX2 " << avx2;
      ++compared;
    }
    use_avx2(before);
  }
  EXPECT_EQ(compared, 2 * 3 * (9 + 9 + 2));
}

TEST(Resize, ReadResizedEqualsTheSingleSteps) {
  Scratch scratch;
  at::manual_seed(1);
  for (auto [h, w] : {std::pair<int64_t, int64_t>{90, 133}, {133, 90}, {40, 40}, {20, 31}}) {
    for (int64_t channels : {1, 3}) {
      const Tensor image = noise({channels, h, w});
      write_image(scratch / "a.png", image);
      for (Resample filter : {Resample::bilinear, Resample::bicubic, Resample::lanczos}) {
        ResizeOptions options{
            .short_side = 40, .crop_width = 32, .crop_height = 37, .filter = filter, .channels = Channels::as_is};
        const int64_t sw = w <= h ? 40 : 40 * w / h, sh = w <= h ? 40 * h / w : 40;
        const Tensor full = resize(image, sw, sh, filter);
        EXPECT_TRUE(decode_image_resized(read_text(scratch / "a.png"), "a.png", options).equal(center_crop(full, 32, 37)));
        options.crop_width = options.crop_height = 0;
        EXPECT_TRUE(decode_image_resized(read_text(scratch / "a.png"), "a.png", options).equal(full));
      }
    }
  }
  EXPECT_THAT(message_of<DataError>([&] {
                decode_image_resized(read_text(scratch / "a.png"), "a.png", {.short_side = 8, .crop_width = 13, .crop_height = 8});
              }),
              HasSubstr("crop of 13 x 8 from 12 x 8"));
}

TEST(Resize, FastIsClose) {
  Scratch scratch;
  at::manual_seed(2);
  write_image(scratch / "a.jpg", resize(noise({3, 12, 20}), 640, 400), 95);
  const std::string jpeg = read_text(scratch / "a.jpg");
  const Tensor exact = decode_image_resized(jpeg, "a.jpg", {.short_side = 64, .crop_width = 64, .crop_height = 64});
  const Tensor fast =
      decode_image_resized(jpeg, "a.jpg", {.short_side = 64, .crop_width = 64, .crop_height = 64, .fast = true});
  EXPECT_EQ(exact.sizes(), fast.sizes());
  EXPECT_LE((exact.to(at::kFloat) - fast.to(at::kFloat)).abs().mean().item<double>(), 2.0);
}

TEST(ImageValues, FloatAndBack) {
  const Tensor bytes = at::arange(256, at::TensorOptions(at::kByte)).reshape({1, 16, 16});
  const Tensor f = to_float(bytes);
  EXPECT_EQ(f.min().item<float>(), -1.0f);
  EXPECT_EQ(f.max().item<float>(), 1.0f);
  EXPECT_TRUE(to_bytes(f).equal(bytes));
  EXPECT_TRUE(to_bytes(at::full({1, 1, 1}, 7.0)).equal(at::full({1, 1, 1}, 255, at::kByte)));
  EXPECT_THROW(to_bytes(at::full({1, 1, 1}, std::nan(""))), NumericError);
}

TEST(ImageValues, Grid) {
  const Tensor images = at::arange(1, 4, at::TensorOptions(at::kByte)).reshape({3, 1, 1, 1}).expand({3, 1, 2, 3});
  const Tensor grid = make_grid(images, 2, 1, 2);  // cells of 4 x 6
  EXPECT_EQ(grid.sizes(), (std::vector<int64_t>{1, 2 * 5 + 1, 2 * 7 + 1}));
  EXPECT_EQ(grid[0][1][1].item<int>(), 1);
  EXPECT_EQ(grid[0][4][13].item<int>(), 2);
  EXPECT_EQ(grid[0][6][1].item<int>(), 3);
  EXPECT_EQ(grid[0][6][8].item<int>(), 255);  // the empty cell
  EXPECT_EQ(grid[0][0][0].item<int>(), 255);
}

}  // namespace
}  // namespace fewstep::io
