#include "src/io/safetensors_header.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "src/base/error.h"

namespace fewstep::io {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;  // the reference implementation's limit
constexpr size_t kMaxDims = 64;               // TensorIterator's limit

struct DtypeSize {
  std::string_view name;
  uint64_t bytes;
};
constexpr DtypeSize kDtypes[] = {{"F64", 8},     {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F8_E4M3", 1}, {"F8_E5M2", 1},
                                 {"F8_E8M0", 1}, {"C64", 8}, {"I64", 8}, {"I32", 4},  {"I16", 2},     {"I8", 1},
                                 {"U64", 8},     {"U32", 4}, {"U16", 2}, {"U8", 1},   {"BOOL", 1}};

// Names come from untrusted files: printable, one line, at most 120 bytes.
std::string show(std::string_view text) {
  std::string out = "'";
  for (char c : text.substr(0, 120)) {
    const auto u = static_cast<unsigned char>(c);
    if (u >= 0x20 && u < 0x7f)
      out += c;
    else
      out += fmt::format("\\x{:02x}", u);
  }
  return out + (text.size() > 120 ? "...'" : "'");
}

// What one tensor's entry said, before it is checked as a whole.
struct Entry {
  std::optional<std::string> dtype;
  std::optional<std::vector<uint64_t>> shape, offsets;
};

// Events of the JSON parser -> header. A DOM would keep only one of two equal keys; here the second one is refused.
class Handler {
 public:
  using number_integer_t = int64_t;
  using number_unsigned_t = uint64_t;
  using number_float_t = double;
  using string_t = std::string;
  using binary_t = nlohmann::json::binary_t;

  Handler(SafetensorsHeader& out, std::string_view file) : out_(out), file_(file) {}

  bool null() { return unexpected("null"); }
  bool boolean(bool) { return unexpected("a boolean"); }
  bool number_float(double, const std::string& text) { return unexpected(fmt::format("the number {}", text)); }
  bool binary(binary_t&) { return unexpected("binary data"); }

  bool number_integer(int64_t value) {  // only called for negative numbers
    if (list_ != nullptr) fail<DataError>("{}: tensor {}: {} has the negative value {}", file_, name(), field_, value);
    return unexpected(fmt::format("the number {}", value));
  }
  bool number_unsigned(uint64_t value) {
    if (list_ == nullptr) return unexpected(fmt::format("the number {}", value));
    const size_t most = field_ == "shape" ? kMaxDims : 2;
    if (list_->size() == most)
      fail<DataError>("{}: tensor {}: {} has more than {} values", file_, name(), field_, most);
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      fail<DataError>("{}: tensor {}: {} has the value {}, beyond 2^63 - 1", file_, name(), field_, value);
    list_->push_back(value);
    return true;
  }
  bool string(std::string& value) {
    if (place_ == Place::metadata) {
      out_.metadata[field_] = std::move(value);
      return true;
    }
    if (place_ != Place::tensor || field_ != "dtype" || list_ != nullptr)
      return unexpected(fmt::format("the text {}", show(value)));
    entry_.dtype = std::move(value);
    return true;
  }
  bool start_array(size_t) {
    if (place_ != Place::tensor || list_ != nullptr || field_ == "dtype") return unexpected("a list");
    auto& target = field_ == "shape" ? entry_.shape : entry_.offsets;
    list_ = &target.emplace();
    return true;
  }
  bool end_array() {
    list_ = nullptr;
    return true;
  }
  bool start_object(size_t) {
    if (place_ == Place::outside) {
      place_ = Place::top;
    } else if (place_ == Place::top) {
      place_ = top_key_ == "__metadata__" ? Place::metadata : Place::tensor;
      entry_ = {};
      fields_.clear();
    } else {
      return unexpected("an object");
    }
    return true;
  }
  bool end_object() {
    if (place_ == Place::tensor) finish_tensor();
    place_ = place_ == Place::top ? Place::outside : Place::top;
    return true;
  }
  bool key(std::string& value) {
    if (place_ == Place::top) {
      if (!names_.insert(value).second) fail<DataError>("{}: the name {} appears twice", file_, show(value));
      top_key_ = std::move(value);
      return true;
    }
    if (!fields_.insert(value).second)
      fail<DataError>("{}: {}: the key {} appears twice", file_, show(top_key_), show(value));
    if (place_ == Place::tensor && value != "dtype" && value != "shape" && value != "data_offsets")
      fail<DataError>("{}: tensor {}: unknown key {} (known: dtype, shape, data_offsets)", file_, name(), show(value));
    field_ = std::move(value);
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& e) {
    std::string_view what = e.what();
    if (const size_t bracket = what.find("] "); bracket != what.npos) what.remove_prefix(bracket + 2);
    std::string line = show(what);
    fail<DataError>("{}: the header is not valid JSON at byte {}: {}", file_, 8 + position,
                    std::string_view(line).substr(1, line.size() - 2));
  }

 private:
  enum class Place { outside, top, metadata, tensor };

  std::string name() const { return show(top_key_); }
  bool unexpected(const std::string& what) const {
    switch (place_) {
      case Place::outside:
        fail<DataError>("{}: the header is {}, expected a JSON object", file_, what);
      case Place::top:
        fail<DataError>("{}: {} is {}, expected an object", file_, name(), what);
      case Place::metadata:
        fail<DataError>("{}: __metadata__ {} is {}, expected text", file_, show(field_), what);
      case Place::tensor:
        break;
    }
    fail<DataError>("{}: tensor {}: {} {} {}, expected {}", file_, name(), field_, list_ ? "holds" : "is", what,
                    field_ == "dtype" ? "text" : "a list of whole numbers");
  }

  void finish_tensor() {
    if (!entry_.dtype) fail<DataError>("{}: tensor {}: dtype is missing", file_, name());
    if (!entry_.shape) fail<DataError>("{}: tensor {}: shape is missing", file_, name());
    if (!entry_.offsets) fail<DataError>("{}: tensor {}: data_offsets is missing", file_, name());
    const uint64_t item = safetensors_item_size(*entry_.dtype);
    if (item == 0) fail<DataError>("{}: tensor {}: unknown dtype {}", file_, name(), show(*entry_.dtype));
    if (entry_.offsets->size() != 2)
      fail<DataError>("{}: tensor {}: data_offsets has {} values, expected 2", file_, name(), entry_.offsets->size());

    // Strides count a zero dimension as one, so they must not overflow either.
    uint64_t bytes = item, reach = item;
    for (uint64_t d : *entry_.shape) {
      bytes *= d;
      if (__builtin_mul_overflow(reach, std::max<uint64_t>(d, 1), &reach) ||
          reach > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
        fail<DataError>("{}: tensor {}: shape [{}] overflows 2^63 bytes", file_, name(),
                        fmt::join(*entry_.shape, ", "));
    }
    const uint64_t begin = (*entry_.offsets)[0], end = (*entry_.offsets)[1];
    if (begin > end) fail<DataError>("{}: tensor {}: begins at {} after its end {}", file_, name(), begin, end);
    if (end - begin != bytes)
      fail<DataError>("{}: tensor {}: data_offsets span {} bytes, shape [{}] of {} needs {}", file_, name(),
                      end - begin, fmt::join(*entry_.shape, ", "), *entry_.dtype, bytes);
    out_.tensors[top_key_] = {*entry_.dtype, {entry_.shape->begin(), entry_.shape->end()}, begin, end};
  }

  SafetensorsHeader& out_;
  std::string_view file_;
  Place place_ = Place::outside;
  std::string top_key_, field_;
  std::set<std::string> names_, fields_;
  Entry entry_;
  std::vector<uint64_t>* list_ = nullptr;
};

// The tensors must tile the data section: no overlap, no hole, nothing after the last one.
void check_layout(const SafetensorsHeader& header, uint64_t data_bytes, std::string_view file) {
  using Item = std::pair<const std::string, TensorInfo>;
  std::vector<const Item*> order;
  for (const Item& item : header.tensors) order.push_back(&item);
  std::sort(order.begin(), order.end(), [](const Item* a, const Item* b) {
    return std::tie(a->second.begin, a->second.end, a->first) < std::tie(b->second.begin, b->second.end, b->first);
  });
  uint64_t at = 0;
  const Item* last = nullptr;
  for (const Item* item : order) {
    const TensorInfo& t = item->second;
    if (t.end > data_bytes)
      fail<DataError>("{}: tensor {}: ends at byte {} of a data section of {} bytes (file truncated?)", file,
                      show(item->first), t.end, data_bytes);
    if (t.begin < at)
      fail<DataError>("{}: tensor {}: begins at {} inside tensor {}, which ends at {}", file, show(item->first),
                      t.begin, show(last->first), at);
    if (t.begin > at)
      fail<DataError>("{}: tensor {}: begins at {}, leaving a hole after byte {}", file, show(item->first), t.begin,
                      at);
    at = t.end;
    last = item;
  }
  if (at != data_bytes)
    fail<DataError>("{}: {} bytes after the last tensor (tensors end at {}, data section is {})", file, data_bytes - at,
                    at, data_bytes);
}

}  // namespace

uint64_t safetensors_item_size(std::string_view dtype) {
  for (const DtypeSize& d : kDtypes)
    if (d.name == dtype) return d.bytes;
  return 0;
}

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> file, std::string_view name) {
  static_assert(std::endian::native == std::endian::little, "safetensors is little-endian");
  if (file.size() < 8) fail<DataError>("{}: truncated: {} bytes, a safetensors file has at least 8", name, file.size());
  uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  if (length > kMaxHeader)
    fail<DataError>("{}: header of {} bytes, the limit is {} (is this a safetensors file?)", name, length, kMaxHeader);
  if (length > file.size() - 8)
    fail<DataError>("{}: truncated: header of {} bytes, {} bytes follow", name, length, file.size() - 8);
  const char* text = reinterpret_cast<const char*>(file.data()) + 8;
  if (length == 0) fail<DataError>("{}: the header is empty", name);
  if (text[0] != '{') fail<DataError>("{}: the header begins with {}, expected '{{'", name, show({text, 1}));

  SafetensorsHeader header;
  header.data_begin = 8 + length;
  Handler handler(header, name);
  nlohmann::json::sax_parse(text, text + length, &handler);
  check_layout(header, file.size() - header.data_begin, name);
  return header;
}

}  // namespace fewstep::io
