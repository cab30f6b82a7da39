#include "datasets/packed.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "datasets/framing.h"
#include "datasets/stored_samples.h"
#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/hash.h"
#include "src/base/json.h"
#include "src/base/progress.h"
#include "src/io/packed.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace {

class Packed final : public Dataset {
 public:
  Packed(const std::filesystem::path& path, const PackedConfig& config)
      : images_(path), config_(config), path_(path.string()) {
    const io::H5File& file = images_.file();
    ids_ = optional_rows("ids", at::kLong, {});
    micro_ = optional_rows("micro", at::kLong, kMicroColumns);
    aesthetic_ = optional_rows("aesthetic", at::kDouble, {});
    if (file.contains("attributes")) attributes_ = file.read_strings("attributes");
    if (!attributes_.empty() && static_cast<int64_t>(attributes_.size()) != images_.size())
      fail<DataError>("{}: {} rows of attributes for {} images", path_, attributes_.size(), images_.size());
    if (file.has_attribute("class_names"))
      class_names_ = stored_names(file.attribute_string("class_names"), path_ + ": class_names");
    config_.targets.framing.upscale = true;  // answered by assign_targets
    if (config.targets.needs_sizes()) find_targets();
  }

  int64_t size() const override {
    return targets_.sizes.empty() ? images_.size() : static_cast<int64_t>(targets_.kept.size());
  }
  std::vector<BucketSize> buckets() const override { return targets_.sizes; }
  int64_t bucket_of(int64_t index) const override {
    return targets_.sizes.empty() ? 0 : targets_.bucket_of.at(static_cast<size_t>(index));
  }
  SmallBuckets small_buckets() const override { return config_.targets.buckets.small_buckets; }
  bool can_reframe() const override { return true; }
  Json conditioning_facts() const override { return target_facts(config_.targets, config_.image_size); }

  Sample get(int64_t index, uint64_t seed, int64_t epoch) const override {
    return get_in(index, bucket_of(index), seed, epoch);
  }
  Sample get_in(int64_t index, int64_t bucket, uint64_t seed, int64_t epoch) const override {
    const int64_t row = row_of(index);
    Sample sample;
    sample.id = ids_.defined() ? ids_.const_data_ptr<int64_t>()[row] : row;
    std::tie(sample.image, sample.micro) = framed(row, bucket, {seed, epoch, sample.id});
    if (aesthetic_.defined()) sample.aesthetic = aesthetic_.const_data_ptr<double>()[row];
    if (const auto all = captions(index); !all.empty())
      sample.caption =
          all[static_cast<size_t>(choose_caption(static_cast<int64_t>(all.size()), seed, epoch, sample.id))];
    sample.label = images_.label(row);
    if (!attributes_.empty())
      sample.attributes =
          stored_attributes(attributes_[static_cast<size_t>(row)], fmt::format("{}: attributes of row {}", path_, row));
    return sample;
  }
  std::vector<std::string> captions(int64_t index) const override { return images_.captions(row_of(index)); }
  std::vector<std::string> class_names() const override { return class_names_; }
  std::string description() const override { return fmt::format("packed {}: {} images", path_, size()); }
  std::string fingerprint() const override {
    // Of the source where pack wrote it: packing changes no sample. The sidecar's hash was verified when the file was
    // opened.
    const io::H5File& file = images_.file();
    const std::string content =
        file.has_attribute("fingerprint") ? file.attribute_string("fingerprint") : sha256_file(path_);
    const bool plain = conditioning_facts() == target_facts({}, config_.image_size);
    if (plain && config_.image_size == 0 && !config_.grey) return content;
    return sha256_hex(fmt::format("packed 1 {} size {} grey {}{}", content, config_.image_size, config_.grey,
                                  plain ? "" : " " + conditioning_facts().dump()));
  }

 private:
  int64_t row_of(int64_t index) const {
    if (index < 0 || index >= size()) fail("{}: sample {} of {}", path_, index, size());
    return targets_.sizes.empty() ? index : targets_.kept[static_cast<size_t>(index)];
  }

  // A data set of the file with a row for every picture: [N] or [N, columns]; undefined where it is not there.
  Tensor optional_rows(const char* name, at::ScalarType type, std::optional<int64_t> columns) const {
    if (!images_.file().contains(name)) return {};
    const Tensor t = images_.file().read(name);
    const std::vector<int64_t> shape = columns ? std::vector{images_.size(), *columns} : std::vector{images_.size()};
    if (t.scalar_type() != type || t.sizes() != at::IntArrayRef(shape))
      fail<DataError>("{}: '{}' must be {} [{}{}]", path_, name, type == at::kLong ? "int64" : "float64", images_.size(),
                      columns ? fmt::format(", {}", *columns) : "");
    return t.contiguous();
  }

  std::string picture_name(int64_t row) const { return fmt::format("{}: picture {}", path_, row); }

  // Sizes as the file has them, or from the header of every picture.
  std::vector<io::ProbedImage> picture_sizes() const {
    std::vector<io::ProbedImage> sizes(static_cast<size_t>(images_.size()));
    const Tensor known = optional_rows("image_sizes", at::kLong, 2);
    Progress progress("image sizes", known.defined() ? 0 : images_.size());
    for (int64_t i = 0; i < images_.size(); ++i) {
      io::ProbedImage& image = sizes[static_cast<size_t>(i)];
      if (known.defined()) {
        image.size = {known.const_data_ptr<int64_t>()[2 * i + 1], known.const_data_ptr<int64_t>()[2 * i]};
        if (image.size.width < 1 || image.size.height < 1) image.error = fmt::format("{}: no size", picture_name(i));
        continue;
      }
      try {
        image.size = io::decode_image_size(images_.bytes(i), picture_name(i));
      } catch (const DataError& e) {
        image.error = e.what();
      }
      progress.update(i + 1);
    }
    return sizes;
  }

  void find_targets() {
    if (config_.targets.buckets.kind == BucketKind::none && config_.image_size == 0)
      fail<ConfigError>("data.small_images needs a target: set data.image_size or data.buckets");
    if (!images_.encoded())
      fail<ConfigError>("{}: its pictures are stored as values of {} x {} pixels: data.buckets and data.small_images need "
                        "encoded pictures (pack a folder with data.buckets set)",
                        path_, images_.shape()[1], images_.shape()[2]);
    std::vector<std::string> names;
    for (int64_t i = 0; i < images_.size(); ++i) names.push_back(picture_name(i));
    targets_ = assign_targets(picture_sizes(), names, config_.targets, config_.image_size, path_);
  }

  BucketSize target_of(int64_t bucket, int64_t height, int64_t width) const {
    if (!targets_.sizes.empty()) return targets_.sizes.at(static_cast<size_t>(bucket));
    return config_.image_size > 0 ? BucketSize{config_.image_size, config_.image_size} : BucketSize{height, width};
  }

  std::pair<Tensor, MicroConditioning> framed(int64_t row, int64_t bucket, const FrameKey& key) const {
    const io::Channels wanted = config_.grey ? io::Channels::grey : channels();
    const FramingConfig& framing = config_.targets.framing;
    if (images_.encoded()) {
      const std::string bytes = images_.bytes(row), name = picture_name(row);
      const io::ImageSize size = io::decode_image_size(bytes, name);
      const Frame frame =
          choose_frame(size.height, size.width, target_of(bucket, size.height, size.width), framing, key);
      return {decode_frame(bytes, name, wanted, frame, framing.decode), frame.micro};
    }
    const Tensor image = images_.image(row, wanted);
    const Frame frame = choose_frame(image.size(1), image.size(2), target_of(bucket, image.size(1), image.size(2)), framing, key);
    return {apply_frame(image, frame), micro_.defined() ? framed_again(micro_of_row(row), frame) : frame.micro};
  }

  MicroConditioning micro_of_row(int64_t row) const {
    const MicroConditioning m = stored_micro(micro_.const_data_ptr<int64_t>() + row * kMicroColumns);
    if (m.original_height < 1 || m.original_width < 1 || m.target_height < 1 || m.target_width < 1)
      fail<DataError>("{}: 'micro' of row {} holds no size: {}", path_, row, micro_text(m));
    return m;
  }

  // Encoded files may be grey or colour: a batch needs one kind.
  io::Channels channels() const { return images_.encoded() ? io::Channels::rgb : io::Channels::as_is; }

  io::PackedImages images_;
  PackedConfig config_;
  std::string path_;
  Tensor ids_;        // int64 [N]; undefined: the row is the id
  Tensor micro_;      // int64 [N, 7]; undefined: the pictures were not framed when they were packed
  Tensor aesthetic_;  // float64 [N]; undefined: none has a score
  Targets targets_;   // sizes empty: every row is kept
  std::vector<std::string> attributes_, class_names_;
};

}  // namespace

void PackedConfig::describe(config::Visitor& v) {
  v.field("train", train, "file of the train split, made by `fewstep data pack`");
  v.field("heldout", heldout, "file of the heldout split");
  v.field("test", test, "file of the test split");
  v.field("image_size", image_size, "resize the shorter side and crop; 0: as packed", config::Range{0, 4096});
  v.field("grey", grey, "one grey channel");
  describe_targets(v, targets);
}

std::unique_ptr<Dataset> PackedConfig::build(Split split) const {
  const std::string& path = file_of_split(*this, split, "fewstep data pack");
  return readable_samples(std::make_unique<Packed>(path, *this), targets.readable);
}

namespace {

// Whether a sample is framed anew every epoch, so that its pixels cannot be packed.
bool framing_varies(const Dataset& dataset) {
  const Json facts = dataset.conditioning_facts();
  return dataset.buckets().size() > 1 || facts.value("crop", "center") == "random" || facts.value("flip", 0.0) > 0;
}

// Rows that go beside the pictures, kept until the end.
struct PackedRows {
  explicit PackedRows(int64_t n)
      : ids(at::empty({n}, at::kLong)),
        micro(at::empty({n, kMicroColumns}, at::kLong)),
        aesthetic(at::empty({n}, at::kDouble)),
        sizes(at::empty({n, 2}, at::kLong)) {}
  void set(int64_t i, const Sample& sample) {
    ids.mutable_data_ptr<int64_t>()[i] = sample.id;
    aesthetic.mutable_data_ptr<double>()[i] = sample.aesthetic;
    any_aesthetic = any_aesthetic || sample.aesthetic != kNoScore;
    const MicroConditioning whole = whole_image(sample.image.size(1), sample.image.size(2));
    const MicroConditioning& m = sample.micro.target_height > 0 ? sample.micro : whole;
    any_micro = any_micro || m != whole;
    store_micro(m, micro.mutable_data_ptr<int64_t>() + i * kMicroColumns);
    sizes.mutable_data_ptr<int64_t>()[2 * i] = m.original_height;
    sizes.mutable_data_ptr<int64_t>()[2 * i + 1] = m.original_width;
    any_attributes = any_attributes || !sample.attributes.empty();
    attributes.push_back(attributes_text(sample));
  }
  void write(io::H5File& file, bool encoded) const {
    file.write("ids", ids);
    if (encoded) file.write("image_sizes", sizes);
    if (any_micro && !encoded) file.write("micro", micro);
    if (any_aesthetic) file.write("aesthetic", aesthetic);
    if (any_attributes) file.write_strings("attributes", attributes);
  }
  Tensor ids, micro, aesthetic, sizes;
  std::vector<std::string> attributes;
  bool any_micro = false, any_aesthetic = false, any_attributes = false;
};

}  // namespace

void pack_dataset(const Dataset& dataset, const std::filesystem::path& out,
                  const std::function<void(int64_t)>& progress) {
  if (dataset.size() == 0) fail<DataError>("the data set is empty: {}", dataset.description());
  const bool encoded = framing_varies(dataset);
  if (encoded && dataset.image_file(0).empty())
    fail<ConfigError>("{}: its samples are framed anew every epoch, and it has no files that could be packed as they are: set "
                      "data.crop: center, data.flip: 0 and no data.buckets",
                      dataset.description());
  io::PackedWriter writer(out, encoded ? std::vector<int64_t>{} : dataset.get(0, 0, 0).image.sizes().vec());
  PackedRows rows(dataset.size());
  for (int64_t i = 0; i < dataset.size(); ++i) {
    const Sample sample = dataset.strict().get(i, 0, 0);  // not another in its place: a broken one is an error
    if (encoded)
      writer.add_encoded(read_text(dataset.image_file(i)), dataset.captions(i), sample.label);
    else
      writer.add(sample.image, dataset.captions(i), sample.label);
    rows.set(i, sample);
    if (progress) progress(i + 1);
  }
  rows.write(writer.file(), encoded);
  if (const auto names = dataset.class_names(); !names.empty()) writer.set_attribute("class_names", Json(names).dump());
  writer.set_attribute("source", dataset.description());
  writer.set_attribute("fingerprint", dataset.fingerprint());
  writer.commit();
}

}  // namespace fewstep
