#include "src/io/packed.h"

#include <algorithm>
#include <cstring>

#include "src/base/error.h"
#include "src/tensor/ops.h"

namespace fewstep::io {
namespace {

constexpr const char* kFormat = "fewstep packed images 1";
constexpr size_t kBlock = 4 << 20;

Tensor as_bytes(const std::string& text) {
  return at::from_blob(const_cast<char*>(text.data()), {static_cast<int64_t>(text.size())},
                       at::TensorOptions(at::kByte));
}
Tensor as_numbers(std::vector<int64_t>& values) {
  return at::from_blob(values.data(), {static_cast<int64_t>(values.size())}, at::TensorOptions(at::kLong));
}
std::vector<int64_t> to_vector(const Tensor& t) {
  return {t.const_data_ptr<int64_t>(), t.const_data_ptr<int64_t>() + t.numel()};
}

}  // namespace

PackedWriter::PackedWriter(const std::filesystem::path& path, std::vector<int64_t> shape)
    : file_(H5File::create(path)), shape_(std::move(shape)) {
  FEW_CHECK(shape_.empty() || shape_.size() == 3, "packed images: shape of {} numbers, expected C, H, W",
            shape_.size());
  file_.set_attribute("format", kFormat);
  if (shape_.empty()) {
    file_.create_dataset("image_bytes", at::kByte, {});
    file_.create_dataset("image_offsets", at::kLong, {});
    image_offsets_ = {0};
  } else {
    file_.create_dataset("images", at::kByte, {.row = shape_});
  }
  file_.create_dataset("caption_bytes", at::kByte, {});
  for (const char* name : {"caption_offsets", "captions_of", "labels"}) file_.create_dataset(name, at::kLong, {});
  caption_offsets_ = captions_of_ = {0};
}

void PackedWriter::add(const Tensor& image, const std::vector<std::string>& captions, int64_t label) {
  FEW_CHECK(!shape_.empty() && image.scalar_type() == at::kByte && image.sizes() == at::IntArrayRef(shape_),
            "{}: picture {} is {} [{}], the file holds uint8 [{}]", file_.path().string(), count_,
            c10::toString(image.scalar_type()), c10::str(image.sizes()), c10::Join(", ", shape_));
  const Tensor data = image.cpu().contiguous();
  image_bytes_.append(static_cast<const char*>(data.const_data_ptr()), data.nbytes());
  add_text(captions, label);
}

void PackedWriter::add_encoded(std::string_view bytes, const std::vector<std::string>& captions, int64_t label) {
  FEW_CHECK(shape_.empty(), "{}: an encoded picture for a file of fixed size", file_.path().string());
  image_bytes_.append(bytes);
  image_end_ += static_cast<int64_t>(bytes.size());
  image_offsets_.push_back(image_end_);
  add_text(captions, label);
}

void PackedWriter::add_text(const std::vector<std::string>& captions, int64_t label) {
  for (const std::string& caption : captions) {
    caption_bytes_.append(caption);
    caption_end_ += static_cast<int64_t>(caption.size());
    caption_offsets_.push_back(caption_end_);
    ++caption_count_;
  }
  captions_of_.push_back(caption_count_);
  labels_.push_back(label);
  ++count_;
  if (image_bytes_.size() + caption_bytes_.size() >= kBlock) flush();
}

void PackedWriter::flush() {
  if (shape_.empty()) {
    file_.append("image_bytes", as_bytes(image_bytes_));
    file_.append("image_offsets", as_numbers(image_offsets_));
  } else {
    std::vector<int64_t> rows = shape_;
    const int64_t row = shape_[0] * shape_[1] * shape_[2];
    rows.insert(rows.begin(), static_cast<int64_t>(image_bytes_.size()) / row);
    file_.append("images", as_bytes(image_bytes_).view(rows));
  }
  file_.append("caption_bytes", as_bytes(caption_bytes_));
  file_.append("caption_offsets", as_numbers(caption_offsets_));
  file_.append("captions_of", as_numbers(captions_of_));
  file_.append("labels", as_numbers(labels_));
  image_bytes_.clear();
  caption_bytes_.clear();
  for (auto* v : {&image_offsets_, &caption_offsets_, &captions_of_, &labels_}) v->clear();
}

void PackedWriter::commit() {
  flush();
  file_.set_attribute("count", count_);
  file_.commit();
}

PackedImages::PackedImages(const std::filesystem::path& path) : file_(H5File::open(path)) {
  const std::string place = path.string();
  if (!file_.has_attribute("format") || file_.attribute_string("format") != kFormat)
    fail<DataError>("{}: not a packed data set ('format' is not '{}'; fewstep data pack makes one)", place, kFormat);
  size_ = file_.attribute_int("count");
  if (size_ < 0) fail<DataError>("{}: count is {}", place, size_);
  if (file_.contains("images")) {
    const std::vector<int64_t> shape = file_.shape("images");
    if (shape.size() != 4 || file_.dtype("images") != at::kByte || shape[0] != size_)
      fail<DataError>("{}: 'images' is not uint8 [{}, C, H, W] but [{}]", place, size_, c10::Join(", ", shape));
    shape_.assign(shape.begin() + 1, shape.end());
  } else {
    image_offsets_ = offsets("image_offsets", size_, file_.shape("image_bytes").at(0));
  }
  const int64_t captions = file_.shape("caption_offsets").at(0) - 1;
  caption_offsets_ = offsets("caption_offsets", captions, file_.shape("caption_bytes").at(0));
  captions_of_ = offsets("captions_of", size_, captions);
  labels_ = to_vector(file_.read("labels").to(at::kLong));
  if (static_cast<int64_t>(labels_.size()) != size_)
    fail<DataError>("{}: {} labels for {} pictures", place, labels_.size(), size_);
}

std::vector<int64_t> PackedImages::offsets(const std::string& name, int64_t count, int64_t total) const {
  std::vector<int64_t> values = to_vector(file_.read(name).to(at::kLong));
  const bool sound = static_cast<int64_t>(values.size()) == count + 1 && values.front() == 0 &&
                     values.back() == total && std::is_sorted(values.begin(), values.end());
  if (!sound)
    fail<DataError>("{}: '{}' does not rise from 0 to {} in {} steps", file_.path().string(), name, total, count);
  return values;
}

void PackedImages::check_index(int64_t index) const {
  FEW_CHECK(index >= 0 && index < size_, "{}: picture {} of {}", file_.path().string(), index, size_);
}

std::string PackedImages::text(const std::string& name, int64_t begin, int64_t end) const {
  const Tensor t = file_.read_rows(name, begin, end);
  return {static_cast<const char*>(t.const_data_ptr()), t.nbytes()};
}

std::string PackedImages::bytes(int64_t index) const {
  check_index(index);
  FEW_CHECK(encoded(), "{}: pictures are stored as values, not as files", file_.path().string());
  const auto i = static_cast<size_t>(index);
  return text("image_bytes", image_offsets_[i], image_offsets_[i + 1]);
}

Tensor PackedImages::image(int64_t index, Channels channels) const {
  check_index(index);
  if (encoded())
    return decode_image(bytes(index), fmt::format("{}: picture {}", file_.path().string(), index), channels);
  const Tensor image = file_.read_rows("images", index, index + 1)[0];
  if (channels == Channels::rgb && shape_[0] == 1) return image.expand({3, shape_[1], shape_[2]}).contiguous();
  FEW_CHECK(channels != Channels::grey || shape_[0] == 1, "{}: grey pictures asked of RGB values",
            file_.path().string());
  return image;
}

std::vector<std::string> PackedImages::captions(int64_t index) const {
  check_index(index);
  const auto first = static_cast<size_t>(captions_of_[static_cast<size_t>(index)]);
  const auto last = static_cast<size_t>(captions_of_[static_cast<size_t>(index) + 1]);
  const int64_t begin = caption_offsets_[first];
  const std::string all = text("caption_bytes", begin, caption_offsets_[last]);
  std::vector<std::string> out;
  for (size_t k = first; k < last; ++k)
    out.push_back(all.substr(static_cast<size_t>(caption_offsets_[k] - begin),
                             static_cast<size_t>(caption_offsets_[k + 1] - caption_offsets_[k])));
  return out;
}

int64_t PackedImages::label(int64_t index) const {
  check_index(index);
  return labels_[static_cast<size_t>(index)];
}

}  // namespace fewstep::io
