#include "src/io/npz.h"

#include <cstring>

#include "src/base/error.h"
#include "src/base/text.h"
#include "src/io/archive.h"
#include "src/tensor/ops.h"

namespace fewstep::io {
namespace {

struct NpyType {
  std::string_view descr;
  at::ScalarType type;
};
constexpr NpyType kTypes[] = {{"<f8", at::kDouble}, {"<f4", at::kFloat}, {"<i8", at::kLong},
                              {"<i4", at::kInt},    {"|u1", at::kByte},  {"|b1", at::kBool}};

// What stands behind 'key': in the header's Python dictionary, up to the comma or brace that ends it.
std::string field(const std::string& header, std::string_view key, const std::string& where) {
  const size_t at = header.find(fmt::format("'{}':", key));
  if (at == std::string::npos) fail<DataError>("{}: the header of the array has no '{}'", where, key);
  size_t begin = header.find(':', at) + 1;
  while (begin < header.size() && header[begin] == ' ') ++begin;
  const size_t end =
      begin < header.size() && header[begin] == '(' ? header.find(')', begin) + 1 : header.find_first_of(",}", begin);
  if (end == std::string::npos || end == 0) fail<DataError>("{}: the header of the array is torn", where);
  return header.substr(begin, end - begin);
}

struct Header {
  std::string text;
  size_t size = 0;  // bytes before the data
};

Header header_of(const std::string& bytes, const std::string& where) {
  constexpr std::string_view kMagic = "\x93NUMPY";
  if (!bytes.starts_with(kMagic) || bytes.size() < 12) fail<DataError>("{}: not an array of numpy", where);
  const auto byte = [&](size_t i) { return static_cast<size_t>(static_cast<uint8_t>(bytes[i])); };
  const bool wide = byte(6) >= 2;  // format 1: two bytes of length, later ones four
  const size_t length = wide ? byte(8) | byte(9) << 8 | byte(10) << 16 | byte(11) << 24 : byte(8) | byte(9) << 8;
  const size_t begin = wide ? 12 : 10;
  if (begin + length > bytes.size()) fail<DataError>("{}: the header of the array is torn", where);
  return {bytes.substr(begin, length), begin + length};
}

std::vector<int64_t> shape_of(const std::string& text, const std::string& where) {
  std::vector<int64_t> shape;
  for (const std::string& part : split(text.substr(1, text.size() - 2), ',')) {
    const std::string number(trim(part));
    if (number.empty()) continue;
    if (number.find_first_not_of("0123456789") != std::string::npos || number.size() > 12)
      fail<DataError>("{}: the array's shape is {}", where, text);
    shape.push_back(std::stoll(number));
  }
  return shape;
}

// Undefined for types that are no numbers.
Tensor array_of(const std::string& bytes, const std::string& where) {
  const Header header = header_of(bytes, where);
  std::string descr = field(header.text, "descr", where);
  if (descr.size() >= 2) descr = descr.substr(1, descr.size() - 2);
  for (const NpyType& t : kTypes) {
    if (t.descr != descr) continue;
    std::vector<int64_t> shape = shape_of(field(header.text, "shape", where), where);
    const bool fortran = field(header.text, "fortran_order", where) == "True";
    if (fortran) std::reverse(shape.begin(), shape.end());
    double numbers = 1;  // in double: a hostile shape must not overflow, nor be allocated
    for (const int64_t d : shape) numbers *= static_cast<double>(d);
    if (static_cast<double>(bytes.size() - header.size) != numbers * static_cast<double>(c10::elementSize(t.type)))
      fail<DataError>("{}: {} bytes of data for shape {} of {}", where, bytes.size() - header.size,
                      field(header.text, "shape", where), descr);
    Tensor out = at::empty(shape, t.type);
    std::memcpy(out.data_ptr(), bytes.data() + header.size, bytes.size() - header.size);
    if (!fortran) return out;
    std::vector<int64_t> order(shape.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(order.size() - 1 - i);
    return out.permute(order).contiguous();
  }
  return {};
}

std::string npy_of(const Tensor& tensor, const std::string& name) {
  const Tensor x = tensor.to(at::kCPU).contiguous();
  for (const NpyType& t : kTypes) {
    if (t.type != x.scalar_type()) continue;
    std::string shape;
    for (const int64_t d : x.sizes()) shape += fmt::format("{}, ", d);
    std::string header = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", t.descr, shape);
    while ((10 + header.size() + 1) % 64 != 0) header += ' ';
    header += '\n';
    std::string out("\x93NUMPY\x01\x00", 8);
    out += static_cast<char>(header.size() & 255), out += static_cast<char>(header.size() >> 8);
    return out + header +
           std::string(static_cast<const char*>(x.data_ptr()), static_cast<size_t>(x.numel()) * x.element_size());
  }
  fail<DataError>("'{}' of type {} cannot be written for numpy", name, c10::toString(x.scalar_type()));
}

}  // namespace

TensorMap read_npz(const std::filesystem::path& path, std::vector<std::string>* skipped) {
  TensorMap out;
  read_archive(path, [&](const std::string& entry, std::string bytes) {
    if (!entry.ends_with(".npy")) return true;
    const std::string name = entry.substr(0, entry.size() - 4);
    const Tensor array = array_of(bytes, fmt::format("{}: '{}'", path.string(), name));
    if (array.defined())
      out[name] = array;
    else if (skipped)
      skipped->push_back(name);
    return true;
  });
  return out;
}

void write_npz(const std::filesystem::path& path, const TensorMap& arrays) {
  std::vector<std::pair<std::string, std::string>> entries;
  for (const auto& [name, tensor] : arrays) entries.emplace_back(name + ".npy", npy_of(tensor, name));
  write_zip(path, entries);
}

}  // namespace fewstep::io
