#include "src/io/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/tensor/ops.h"
#include "tests/io/scratch.h"

namespace fewstep::io {
namespace {

using ::testing::HasSubstr;

std::string file_bytes(std::string_view header, std::string_view data = "") {
  uint64_t length = header.size();
  std::string out(reinterpret_cast<const char*>(&length), 8);
  return out.append(header).append(data);
}
SafetensorsHeader parse(std::string_view bytes) {
  return parse_safetensors_header(std::as_bytes(std::span(bytes.data(), bytes.size())), "x.safetensors");
}
std::string zeros(size_t n) { return std::string(n, '\0'); }

struct Refusal {
  const char* what;
  std::string bytes;
  const char* reason;
};
std::vector<Refusal> refusals() {
  const auto one = [](const std::string& entry, size_t data) {
    return file_bytes("{\"a\":" + entry + "}", zeros(data));
  };
  std::string huge = file_bytes("{}");
  huge[7] = '\x10';
  return {
      {"empty", "", "truncated: 0 bytes"},
      {"short length", "\x02\0\0", "truncated: 1 bytes"},
      {"huge header", huge, "the limit is 100000000"},
      {"header beyond file", file_bytes("{}").substr(0, 9), "truncated: header of 2 bytes, 1 bytes follow"},
      {"no header", zeros(8), "the header is empty"},
      {"leading space", file_bytes(" {}"), "begins with ' '"},
      {"pickle", file_bytes("\x80\x04"), "begins with '\\x80'"},
      {"cut JSON", file_bytes("{\"a\":"), "not valid JSON at byte"},
      {"two values", file_bytes("{} {}"), "not valid JSON at byte"},
      {"bad UTF-8", file_bytes("{\"\xff\":1}"), "not valid JSON at byte"},
      {"duplicate tensor", file_bytes(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}})"),
       "'a' appears twice"},
      {"duplicate key", one(R"({"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]})", 0),
       "the key 'dtype' appears twice"},
      {"duplicate metadata", file_bytes(R"({"__metadata__":{"k":"1","k":"2"}})"), "'k' appears twice"},
      {"metadata number", file_bytes(R"({"__metadata__":{"k":1}})"), "__metadata__ 'k' is the number 1, expected text"},
      {"metadata object", file_bytes(R"({"__metadata__":{"k":{}}})"), "__metadata__ 'k' is an object"},
      {"metadata text", file_bytes(R"({"__metadata__":"k"})"), "'__metadata__' is the text 'k', expected an object"},
      {"tensor null", one("null", 0), "'a' is null, expected an object"},
      {"nested", one(R"({"dtype":{"x":1}})", 0), "dtype is an object, expected text"},
      {"nested list", one(R"({"shape":[[1]]})", 0), "shape holds a list"},
      {"unknown key", one(R"({"strides":[1]})", 0), "unknown key 'strides'"},
      {"missing dtype", one(R"({"shape":[0],"data_offsets":[0,0]})", 0), "'a': dtype is missing"},
      {"missing shape", one(R"({"dtype":"U8","data_offsets":[0,0]})", 0), "'a': shape is missing"},
      {"missing offsets", one(R"({"dtype":"U8","shape":[0]})", 0), "'a': data_offsets is missing"},
      {"unknown dtype", one(R"({"dtype":"F12","shape":[0],"data_offsets":[0,0]})", 0), "unknown dtype 'F12'"},
      {"negative", one(R"({"dtype":"U8","shape":[-1],"data_offsets":[0,0]})", 0), "shape has the negative value -1"},
      {"fraction", one(R"({"dtype":"U8","shape":[1.5],"data_offsets":[0,0]})", 0), "shape holds the number 1.5"},
      {"beyond 64 bits", one(R"({"dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,0]})", 0),
       "shape holds the number"},
      {"beyond 63 bits", one(R"({"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,0]})", 0), "beyond 2^63"},
      {"overflow", one(R"({"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]})", 0),
       "overflows 2^63 bytes"},
      {"overflow beside zero", one(R"({"dtype":"U8","shape":[0,4611686018427387904,4],"data_offsets":[0,0]})", 0),
       "overflows"},
      {"offsets one", one(R"({"dtype":"U8","shape":[0],"data_offsets":[0]})", 0),
       "data_offsets has 1 values, expected 2"},
      {"offsets three", one(R"({"dtype":"U8","shape":[0],"data_offsets":[0,0,0]})", 0), "more than 2 values"},
      {"backwards", one(R"({"dtype":"U8","shape":[1],"data_offsets":[1,0]})", 1), "begins at 1 after its end 0"},
      {"wrong size", one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})", 4),
       "span 4 bytes, shape [2] of F32 needs 8"},
      {"out of range", one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})", 7),
       "ends at byte 8 of a data section of 7"},
      {"hole first", one(R"({"dtype":"U8","shape":[1],"data_offsets":[1,2]})", 2), "leaving a hole after byte 0"},
      {"trailing", one(R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})", 3), "2 bytes after the last tensor"},
      {"overlap",
       file_bytes(
           R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
           zeros(3)),
       "'b': begins at 1 inside tensor 'a', which ends at 2"},
  };
}

TEST(SafetensorsHeader, RefusesEachMalformedFileWithItsReason) {
  for (const Refusal& r : refusals()) {
    SCOPED_TRACE(r.what);
    std::string_view bytes = r.bytes;
    if (std::string_view(r.what) == "short length") bytes = bytes.substr(0, 1);
    const std::string message = message_of<DataError>([&] { parse(bytes); });
    EXPECT_THAT(message, HasSubstr(r.reason));
    EXPECT_TRUE(message.starts_with("x.safetensors: ")) << message;
  }
}

TEST(SafetensorsHeader, TooManyDimensions) {
  std::string ones = "1";
  for (int i = 0; i < 64; ++i) ones += ",1";
  EXPECT_THAT(message_of<DataError>([&] {
                parse(file_bytes(R"({"a":{"dtype":"U8","data_offsets":[0,1],"shape":[)" + ones + "]}}", "x"));
              }),
              HasSubstr("shape has more than 64 values"));
}

TEST(SafetensorsHeader, AcceptsEmptyPaddedAndZeroSized) {
  EXPECT_TRUE(parse(file_bytes("{}")).tensors.empty());
  const auto h =
      parse(file_bytes(R"({"__metadata__":{"format":"pt"},"z":{"dtype":"F32","shape":[0,3],"data_offsets":[4,4]},)"
                       R"("s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}    )",
                       zeros(4)));
  EXPECT_EQ(h.metadata.at("format"), "pt");
  EXPECT_EQ(h.tensors.at("z").shape, (std::vector<int64_t>{0, 3}));
  EXPECT_TRUE(h.tensors.at("s").shape.empty());
}

TensorMap every_dtype() {
  TensorMap out;
  for (at::ScalarType t :
       {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kFloat8_e4m3fn, at::kFloat8_e5m2, at::kLong, at::kInt,
        at::kShort, at::kChar, at::kByte, at::kBool, at::kUInt16, at::kUInt32, at::kUInt64})
    out[std::string("t.") + c10::toString(t)] = at::arange(6, at::kFloat).reshape({2, 3}).to(t);
  out["empty"] = at::empty({0, 4});
  out["scalar"] = at::scalar_tensor(1.5);
  out["transposed \"q\" \xc3\xa9"] = at::arange(12, at::kFloat).reshape({3, 4}).t();
  return out;
}

TEST(Safetensors, RoundTripOfEveryDtype) {
  Scratch scratch;
  const TensorMap tensors = every_dtype();
  write_safetensors(scratch / "a.safetensors", tensors, {{"format", "pt"}, {"note", "x\ny"}});
  const Safetensors file(scratch / "a.safetensors");
  EXPECT_EQ(file.metadata().at("note"), "x\ny");
  ASSERT_EQ(file.names().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    SCOPED_TRACE(name);
    const Tensor back = file.get(name);
    EXPECT_EQ(back.scalar_type(), tensor.scalar_type());
    EXPECT_EQ(back.sizes(), tensor.sizes());
    const Tensor want = tensor.contiguous();
    EXPECT_EQ(std::memcmp(back.const_data_ptr(), want.const_data_ptr(), want.nbytes()), 0);
  }
}

TEST(Safetensors, SameInputSameBytes) {
  Scratch scratch;
  write_safetensors(scratch / "a.safetensors", every_dtype(), {{"b", "2"}, {"a", "1"}});
  write_safetensors(scratch / "b.safetensors", every_dtype(), {{"a", "1"}, {"b", "2"}});
  const std::string bytes = read_text(scratch / "a.safetensors");
  EXPECT_EQ(bytes, read_text(scratch / "b.safetensors"));
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  EXPECT_EQ(length % 8, 0u);
}

TEST(Safetensors, TensorsOutliveTheFileAndItsName) {
  Scratch scratch;
  Tensor kept;
  {
    write_safetensors(scratch / "a.safetensors", {{"w", at::arange(1000, at::kInt)}});
    kept = Safetensors(scratch / "a.safetensors").get("w");
    std::filesystem::remove(scratch / "a.safetensors");
  }
  EXPECT_EQ(kept.sum().item<int64_t>(), 499500);
}

TEST(Safetensors, EveryPrefixIsRefused) {
  Scratch scratch;
  write_safetensors(scratch / "a.safetensors", {{"w", at::arange(7, at::kInt)}, {"b", at::ones({3})}}, {{"k", "v"}});
  const std::string bytes = read_text(scratch / "a.safetensors");
  for (size_t n = 0; n < bytes.size(); ++n) EXPECT_THROW(parse(std::string_view(bytes).substr(0, n)), DataError) << n;
  EXPECT_EQ(parse(bytes).tensors.size(), 2u);
}

TEST(Safetensors, EveryFlippedHeaderBitIsReadOrRefused) {
  Scratch scratch;
  write_safetensors(scratch / "a.safetensors", {{"w", at::arange(7, at::kInt)}, {"b", at::ones({3})}}, {{"k", "v"}});
  const std::string bytes = read_text(scratch / "a.safetensors");
  int read = 0, refused = 0;
  for (size_t bit = 0; bit < (bytes.size() - 40) * 8; ++bit) {
    std::string bad = bytes;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << bit % 8));
    try {
      parse(bad);
      ++read;
    } catch (const DataError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 500);
  EXPECT_GT(read, 0);  // a changed name is still a name
}

TEST(Safetensors, MisalignedAndInvalidBool) {
  Scratch scratch;
  write_raw(
      scratch / "odd.safetensors",
      file_bytes(
          R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"f":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})",
          std::string("\x07\0\0\x80\x3f", 5)));
  EXPECT_EQ(Safetensors(scratch / "odd.safetensors").get("f").item<float>(), 1.0f);
  write_raw(scratch / "bool.safetensors",
            file_bytes(R"({"b":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}})", "\x01\x02"));
  const Safetensors file(scratch / "bool.safetensors");
  EXPECT_THAT(message_of<DataError>([&] { file.get("b"); }), HasSubstr("'b': a BOOL byte is neither 0 nor 1"));
}

TEST(Safetensors, UnknownNameIsAnsweredWithTheNearest) {
  Scratch scratch;
  write_safetensors(scratch / "a.safetensors", {{"layer.weight", at::ones({1})}});
  const Safetensors file(scratch / "a.safetensors");
  EXPECT_FALSE(file.contains("layer.weigth"));
  EXPECT_THAT(message_of<DataError>([&] { file.get("layer.weigth"); }), HasSubstr("did you mean 'layer.weight'?"));
  EXPECT_THAT(message_of<DataError>([&] { Safetensors(scratch / "none.safetensors"); }), HasSubstr("none.safetensors"));
}

TEST(Safetensors, ShardedIndex) {
  Scratch scratch;
  write_safetensors(scratch / "m-1.safetensors", {{"a", at::ones({2})}});
  write_safetensors(scratch / "m-2.safetensors", {{"b", at::zeros({3})}}, {{"format", "pt"}});
  const auto index = [&](const std::string& map) {
    write_raw(scratch / "m.safetensors.index.json", R"({"metadata":{"total_size":20},"weight_map":)" + map + "}");
    return Safetensors(scratch / "m.safetensors.index.json");
  };
  const Safetensors good = index(R"({"a":"m-1.safetensors","b":"m-2.safetensors"})");
  EXPECT_EQ(good.names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(good.get("b").numel(), 3);
  EXPECT_EQ(good.metadata().at("format"), "pt");
  const auto refused = [&](const std::string& map) { return message_of<DataError>([&] { index(map); }); };
  EXPECT_THAT(refused(R"({"a":"m-3.safetensors"})"), HasSubstr("shard 'm-3.safetensors' is missing"));
  EXPECT_THAT(refused(R"({"b":"m-1.safetensors"})"), HasSubstr("'b' is not in its shard 'm-1.safetensors'"));
  EXPECT_THAT(refused(R"({"a":"../m-1.safetensors"})"), HasSubstr("outside the index's folder"));
  EXPECT_THAT(refused(R"({"a":"/etc/passwd"})"), HasSubstr("outside the index's folder"));
  EXPECT_THAT(refused(R"({"a":3})"), HasSubstr("expected a file name"));
  EXPECT_THAT(refused("[]"), HasSubstr("no 'weight_map' object"));
  EXPECT_THAT(refused("{"), HasSubstr("not valid JSON"));
}

TEST(Safetensors, WriterRefusesWhatHasNoData) {
  Scratch scratch;
  EXPECT_THROW(write_safetensors(scratch / "a.safetensors", {{"m", at::empty({2}, at::kMeta)}}), Error);
  EXPECT_THROW(write_safetensors(scratch / "a.safetensors", {{"\xff", at::ones({2})}}), Error);
  EXPECT_THROW(to_map({{"a", at::ones({1})}, {"a", at::ones({1})}}), Error);
  EXPECT_FALSE(std::filesystem::exists(scratch / "a.safetensors"));
  EXPECT_THROW(write_safetensors(scratch / "no-folder/a.safetensors", {{"a", at::ones({2})}}), DataError);
}

}  // namespace
}  // namespace fewstep::io
