#include "trainers/teacher_images.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "datasets/latent_cache.h"
#include "src/base/error.h"
#include "src/base/hash.h"
#include "src/io/image.h"
#include "src/pipelines/pipeline.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "trainers/teacher_images_format.h"

namespace fewstep {
namespace fs = std::filesystem;
namespace {

std::string first_digits_of(const std::string& hash) { return hash.substr(0, 16); }

std::vector<int64_t> teacher_column(const Tensor& column) {
  const Tensor whole = column.to(at::kCPU, at::kLong).contiguous();
  const int64_t* data = whole.const_data_ptr<int64_t>();
  return {data, data + whole.numel()};
}

}  // namespace

std::string teacher_group(at::IntArrayRef size) {
  FEW_CHECK(size.size() == 3, "a picture of {} dimensions", size.size());
  return fmt::format("{}x{}x{}", size[0], size[1], size[2]);
}

Json TeacherFacts::to_json() const {
  return {{"version", version}, {"model", model},   {"model_name", model_name}, {"source", source}, {"source_fingerprint", source_fingerprint},
          {"split", split},     {"count", count},   {"options", options},       {"seed", seed}};
}

TeacherFacts TeacherFacts::from_json(const Json& json, std::string_view where) {
  TeacherFacts f;
  try {
    f.version = json.at("version").get<int64_t>();
    f.model = json.at("model").get<std::string>(), f.model_name = json.at("model_name").get<std::string>();
    f.source = json.at("source").get<std::string>(), f.source_fingerprint = json.at("source_fingerprint").get<std::string>();
    f.split = json.at("split").get<std::string>(), f.options = json.at("options").get<std::string>();
    f.count = json.at("count").get<int64_t>(), f.seed = json.at("seed").get<int64_t>();
  } catch (const Json::exception& e) {
    fail<DataError>("{}: {}", where, e.what());
  }
  if (f.version != TeacherFacts().version)
    fail<DataError>("{}: version {} of the format, this program reads {}", where, f.version, TeacherFacts().version);
  return f;
}

std::string TeacherFacts::key() const {
  Json json = to_json();
  for (const char* name : {"model_name", "source"}) json.erase(name);  // for people
  return sha256_hex(json.dump());
}

std::string TeacherFacts::command(const fs::path& out) const {
  std::string line = fmt::format("fewstep data teacher CONFIG --model {} --out {}", model_name.empty() ? "DIR" : model_name, out.string());
  if (count > 0) line += fmt::format(" --count {}", count);
  if (seed != 0) line += fmt::format(" --seed {}", seed);
  if (!split.empty() && split != name_of(Split::train)) line += " --split " + split;
  if (!options.empty()) line += " --with " + options;
  return line;
}

std::string model_identity(const fs::path& model_folder) {
  std::vector<fs::path> parts;
  for (const auto& item : fs::directory_iterator(pipelines::find_model(model_folder)))
    if (item.is_directory() && item.path().filename() != "adapter" && !fs::is_empty(item.path())) parts.push_back(item.path());
  if (parts.empty()) fail<DataError>("{}: no components of a model in it", model_folder.string());
  std::sort(parts.begin(), parts.end());
  return folders_identity(parts);
}

TeacherFacts read_teacher_facts(const io::H5File& file) {
  const std::string place = file.path().string();
  if (!file.has_attribute("format") || file.attribute_string("format") != kTeacherImagesFormat)
    fail<DataError>("{}: not a file of teacher images (attribute format is not '{}'); `fewstep data teacher` makes one", place,
                    kTeacherImagesFormat);
  const Json json = Json::parse(file.attribute_string("facts"), nullptr, false);
  if (json.is_discarded()) fail<DataError>("{}: facts: not JSON", place);
  return TeacherFacts::from_json(json, place + ": facts");
}

std::vector<std::vector<int64_t>> read_teacher_sizes(const io::H5File& file) {
  const Json json = Json::parse(file.attribute_string("sizes"), nullptr, false);
  std::vector<std::vector<int64_t>> sizes;
  try {
    sizes = json.get<std::vector<std::vector<int64_t>>>();
  } catch (const Json::exception& e) {
    fail<DataError>("{}: sizes: {}", file.path().string(), e.what());
  }
  return sizes;
}

TeacherImages::TeacherImages(const fs::path& path, int64_t bytes_in_memory) : path_(path) {
  if (path.empty() || !fs::exists(path)) {
    const fs::path example = path.empty() ? fs::path("FILE.h5") : path;
    fail<DataError>("teacher images: {}: no such file; make it with `{}`", path.empty() ? "(none given)" : path.string(),
                    TeacherFacts{.count = 10000, .options = "guidance=... sampling_steps=..."}.command(example));
  }
  file_ = std::make_unique<io::H5File>(io::H5File::open(path));
  facts_ = read_teacher_facts(*file_);
  int64_t bytes = 0;
  const auto sizes = read_teacher_sizes(*file_);
  for (const auto& size : sizes) {
    const std::string name = teacher_group(size);
    Group g{.name = name, .ids = teacher_column(file_->read(name + "/ids")), .labels = teacher_column(file_->read(name + "/labels")),
            .captions = file_->read_strings(name + "/captions")};
    const std::vector<int64_t> shape = file_->shape(name + "/images");
    const auto n = static_cast<int64_t>(g.ids.size());
    if (n == 0 || shape != std::vector<int64_t>{n, size[0], size[1], size[2]} || g.labels.size() != g.ids.size() ||
        g.captions.size() != g.ids.size())
      fail<DataError>("{}: {}: [{}] images, {} ids, {} labels and {} captions", path.string(), name, c10::str(shape), n, g.labels.size(),
                      g.captions.size());
    for (int64_t row = 0; row < n; ++row) g.row_of.emplace(g.ids[static_cast<size_t>(row)], row);
    bytes += n * size[0] * size[1] * size[2];
    groups_.push_back(std::move(g));
  }
  if (groups_.empty()) fail<DataError>("{}: no images in it", path.string());
  if (bytes > bytes_in_memory) return;
  for (Group& g : groups_) g.images = file_->read(g.name + "/images");
  file_.reset();
}

int64_t TeacherImages::size() const {
  int64_t n = 0;
  for (const Group& g : groups_) n += static_cast<int64_t>(g.ids.size());
  return n;
}

const TeacherImages::Group& TeacherImages::group(at::IntArrayRef size) const {
  const std::string name = teacher_group(size);
  std::string known;
  for (const Group& g : groups_) {
    if (g.name == name) return g;
    known += (known.empty() ? "" : ", ") + g.name;
  }
  fail<ConfigError>("teacher images: {} holds images of {} (channels x height x width), this run's are {}; make them from its data: `{}`",
                    path_.string(), known, name, facts_.command("FILE.h5"));
}

void TeacherImages::check_size(int64_t channels, int64_t height, int64_t width) const { group({channels, height, width}); }

void TeacherImages::check_teacher(const fs::path& model_folder) const {
  const std::string identity = model_identity(model_folder);
  if (identity == facts_.model) return;
  TeacherFacts wanted = facts_;
  wanted.model_name = model_folder.string();
  fail<ConfigError>("teacher images: {} was made by {} (weights {}), the teacher of this run is {} (weights {}); make them anew with `{}`, "
                    "or set gan.any_teacher: true",
                    path_.string(), facts_.model_name, first_digits_of(facts_.model), model_folder.string(), first_digits_of(identity),
                    wanted.command("FILE.h5"));
}

bool TeacherImages::same_samples(const Dataset& dataset) const {
  const Dataset& own = dataset.strict();
  if (const auto* cache = dynamic_cast<const LatentCache*>(&own)) {
    if (cache->facts().source_fingerprint == facts_.source_fingerprint) return true;
  }
  return own.fingerprint() == facts_.source_fingerprint;
}

TeacherImages::Picked TeacherImages::pick(const Tensor& ids, at::IntArrayRef size, bool by_id) const {
  const Group& g = group(size);
  const auto n = static_cast<int64_t>(g.ids.size());
  Picked out;
  std::vector<int64_t> labels;
  std::vector<Tensor> images;
  for (const int64_t id : teacher_column(ids)) {
    const auto own = by_id ? g.row_of.find(id) : g.row_of.end();
    const int64_t row = own != g.row_of.end() ? own->second : (id % n + n) % n;
    out.same_sample += own != g.row_of.end();
    images.push_back(g.images.defined() ? g.images[row] : file_->read_rows(g.name + "/images", row, row + 1)[0]);
    out.captions.push_back(g.captions[static_cast<size_t>(row)]);
    labels.push_back(g.labels[static_cast<size_t>(row)]);
  }
  out.labels = at::tensor(labels, at::kLong);
  out.images = images.empty() ? at::empty({0, size[0], size[1], size[2]}, at::kFloat) : io::to_float(at::stack(images));
  return out;
}

Tensor real_places(const Tensor& positions, int64_t batch_size, double share, uint64_t seed, int64_t step) {
  FEW_CHECK(share >= 0 && share <= 1 && batch_size > 0, "share {} of a batch of {}", share, batch_size);
  const int64_t real = std::llround(share * static_cast<double>(batch_size));
  const Tensor drawn = uniform_by_id(at::arange(batch_size, at::kLong), 1, seed, Stream::mix, step).squeeze(1);
  const Tensor order = std::get<1>(at::sort(drawn, /*stable=*/true, 0, false));  // places by their draws: the first ones are real
  Tensor places = at::zeros({batch_size}, at::kBool);
  places.index_fill_(0, order.narrow(0, 0, real), true);
  return places.index_select(0, positions.to(at::kCPU, at::kLong));
}

}  // namespace fewstep
