#include "datasets/packed.h"

#include <nlohmann/json.hpp>

#include "datasets/image_list.h"
#include "src/base/error.h"
#include "src/base/hash.h"
#include "src/base/json.h"
#include "src/io/packed.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace {

Json parse_or_fail(const std::string& text, const std::string& place) {
  Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded()) fail<DataError>("{}: not JSON: '{}'", place, text);
  return json;
}

class Packed final : public Dataset {
 public:
  Packed(const std::filesystem::path& path, const PackedConfig& config)
      : images_(path), config_(config), path_(path.string()) {
    const io::H5File& file = images_.file();
    if (file.contains("ids")) ids_ = file.read("ids");
    if (ids_.defined() && (ids_.scalar_type() != at::kLong || ids_.dim() != 1 || ids_.size(0) != size()))
      fail<DataError>("{}: 'ids' must be int64 [{}]", path_, size());
    if (file.contains("attributes")) attributes_ = file.read_strings("attributes");
    if (!attributes_.empty() && static_cast<int64_t>(attributes_.size()) != size())
      fail<DataError>("{}: {} rows of attributes for {} images", path_, attributes_.size(), size());
    if (file.has_attribute("class_names")) {
      const Json names = parse_or_fail(file.attribute_string("class_names"), path_ + ": class_names");
      for (const Json& name : names) class_names_.push_back(name.is_string() ? name.get<std::string>() : name.dump());
    }
  }

  int64_t size() const override { return images_.size(); }

  Sample get(int64_t index, uint64_t seed, int64_t epoch) const override {
    Sample sample;
    sample.id = ids_.defined() ? ids_.const_data_ptr<int64_t>()[check(index)] : index;
    Tensor image = images_.image(check(index), config_.grey ? io::Channels::grey : channels());
    if (config_.image_size > 0) image = resize_and_crop(image, config_.image_size);
    sample.image = image.contiguous();
    if (const auto all = captions(index); !all.empty())
      sample.caption =
          all[static_cast<size_t>(choose_caption(static_cast<int64_t>(all.size()), seed, epoch, sample.id))];
    sample.label = images_.label(index);
    if (!attributes_.empty()) {
      const std::string place = fmt::format("{}: attributes of row {}", path_, index);
      const Json words = parse_or_fail(attributes_[static_cast<size_t>(index)], place);
      if (!words.is_object()) fail<DataError>("{}: not an object: '{}'", place, words.dump());
      for (const auto& [name, word] : words.items())
        sample.attributes[name] = word.is_string() ? word.get<std::string>() : word.dump();
    }
    return sample;
  }
  std::vector<std::string> captions(int64_t index) const override { return images_.captions(check(index)); }
  std::vector<std::string> class_names() const override { return class_names_; }
  std::string description() const override { return fmt::format("packed {}: {} images", path_, size()); }
  std::string fingerprint() const override {
    // Of the source where pack wrote it: packing changes no sample. The sidecar's hash was verified when the file was
    // opened.
    const io::H5File& file = images_.file();
    const std::string content =
        file.has_attribute("fingerprint") ? file.attribute_string("fingerprint") : sha256_file(path_);
    if (config_.image_size == 0 && !config_.grey) return content;
    return sha256_hex(fmt::format("packed 1 {} size {} grey {}", content, config_.image_size, config_.grey));
  }

 private:
  int64_t check(int64_t index) const {
    if (index < 0 || index >= size()) fail("{}: sample {} of {}", path_, index, size());
    return index;
  }
  // Encoded files may be grey or colour: a batch needs one kind.
  io::Channels channels() const { return images_.encoded() ? io::Channels::rgb : io::Channels::as_is; }

  io::PackedImages images_;
  PackedConfig config_;
  std::string path_;
  Tensor ids_;  // int64 [N]; undefined: the row is the id
  std::vector<std::string> attributes_, class_names_;
};

}  // namespace

void PackedConfig::describe(config::Visitor& v) {
  v.field("train", train, "file of the train split, made by `fewstep data pack`");
  v.field("heldout", heldout, "file of the heldout split");
  v.field("test", test, "file of the test split");
  v.field("image_size", image_size, "resize the shorter side and crop; 0: as packed", config::Range{0, 4096});
  v.field("grey", grey, "one grey channel");
}

std::unique_ptr<Dataset> PackedConfig::build(Split split) const {
  const std::string& path = split == Split::train ? train : split == Split::heldout ? heldout : test;
  if (path.empty()) {
    constexpr std::string_view kNames[] = {"train", "heldout", "test"};
    fail<ConfigError>(
        "data.{} is not set: the {} split is asked for (make its file with `fewstep data pack --split {}`)",
        kNames[static_cast<size_t>(split)], kNames[static_cast<size_t>(split)], kNames[static_cast<size_t>(split)]);
  }
  return std::make_unique<Packed>(path, *this);
}

void pack_dataset(const Dataset& dataset, const std::filesystem::path& out,
                  const std::function<void(int64_t)>& progress) {
  if (dataset.size() == 0) fail<DataError>("the data set is empty: {}", dataset.description());
  io::PackedWriter writer(out, dataset.get(0, 0, 0).image.sizes().vec());
  std::vector<std::string> attributes;
  const Tensor ids = at::empty({dataset.size()}, at::kLong);
  bool any = false;
  for (int64_t i = 0; i < dataset.size(); ++i) {
    const Sample sample = dataset.get(i, 0, 0);
    writer.add(sample.image, dataset.captions(i), sample.label);
    ids.mutable_data_ptr<int64_t>()[i] = sample.id;
    Json words = Json::object();
    for (const auto& [name, word] : sample.attributes) words[name] = word;
    any = any || !words.empty();
    attributes.push_back(words.dump());
    if (progress) progress(i + 1);
  }
  writer.file().write("ids", ids);
  if (any) writer.file().write_strings("attributes", attributes);
  if (const auto names = dataset.class_names(); !names.empty()) writer.set_attribute("class_names", Json(names).dump());
  writer.set_attribute("source", dataset.description());
  writer.set_attribute("fingerprint", dataset.fingerprint());
  writer.commit();
}

}  // namespace fewstep
