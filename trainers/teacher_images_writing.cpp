// Makes files of teacher images: the parts, their merging, and the drawing itself.
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/pipelines/conditioner.h"
#include "src/tensor/ops.h"
#include "trainers/teacher_images.h"
#include "trainers/teacher_images_format.h"

namespace fewstep {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kTeacherChunkBytes = 16 << 10;  // rows are read one at a time, in random order

fs::path teacher_parts(const fs::path& out) { return out.string() + ".parts"; }

// What differs, for people: "seed 0 instead of 3".
std::string facts_difference(const TeacherFacts& there, const TeacherFacts& wanted) {
  const Json a = there.to_json(), b = wanted.to_json();
  std::string out;
  for (const auto& [name, value] : a.items()) {
    if (value == b.at(name) || name == "source" || name == "model_name") continue;
    if (name == "model")
      out += fmt::format("{}model {} instead of {}", out.empty() ? "" : ", ", there.model_name, wanted.model_name);
    else
      out += fmt::format("{}{} {} instead of {}", out.empty() ? "" : ", ", name, value.dump(), b.at(name).dump());
  }
  return out;
}

void refuse_other_facts(const fs::path& path, const TeacherFacts& there, const TeacherFacts& wanted) {
  if (there.key() == wanted.key()) return;
  fail<ConfigError>("{}: holds teacher images of other settings ({}); give another --out, or remove it", path.string(),
                    facts_difference(there, wanted));
}

// One group of a file that grows.
struct GroupRows {
  std::vector<int64_t> ids, labels;
  std::vector<std::string> captions;
};

class TeacherFile {
 public:
  TeacherFile(const fs::path& path, const TeacherFacts& facts) : file_(io::H5File::create(path)), facts_(facts) {}
  void append(const std::vector<int64_t>& size, const Tensor& images, const GroupRows& more) {
    const std::string name = teacher_group(size);
    auto [found, fresh] = groups_.try_emplace(name);
    if (fresh) {
      sizes_.push_back(size);
      const int64_t bytes = std::max<int64_t>(1, size[0] * size[1] * size[2]);
      file_.create_dataset(name + "/images", at::kByte, {.row = size, .chunk_rows = std::max<int64_t>(1, kTeacherChunkBytes / bytes)});
    }
    file_.append(name + "/images", images);
    GroupRows& rows = found->second;
    rows.ids.insert(rows.ids.end(), more.ids.begin(), more.ids.end());
    rows.labels.insert(rows.labels.end(), more.labels.begin(), more.labels.end());
    rows.captions.insert(rows.captions.end(), more.captions.begin(), more.captions.end());
  }
  void commit() {
    for (const auto& [name, rows] : groups_) {
      file_.write(name + "/ids", at::tensor(rows.ids, at::kLong));
      file_.write(name + "/labels", at::tensor(rows.labels, at::kLong));
      file_.write_strings(name + "/captions", rows.captions);
    }
    file_.set_attribute("format", std::string(kTeacherImagesFormat));
    file_.set_attribute("facts", facts_.to_json().dump());
    file_.set_attribute("key", facts_.key());
    file_.set_attribute("sizes", Json(sizes_).dump());
    file_.commit();
  }

 private:
  io::H5File file_;
  TeacherFacts facts_;
  std::vector<std::vector<int64_t>> sizes_;
  std::map<std::string, GroupRows> groups_;
};

std::vector<int64_t> merged_column(const Tensor& column) {
  const int64_t* data = column.const_data_ptr<int64_t>();
  return {data, data + column.numel()};
}

// What a sample is asked for, of which size.
struct DrawingJob {
  int64_t index = 0, id = 0, label = -1;
  int64_t height = 0, width = 0;
  std::string caption, prompt;
};

std::vector<std::string> model_classes(const fs::path& model) {  // of class models; empty for texts
  if (!fs::is_directory(model / "conditioner")) return {};
  return pipelines::Conditioner::load(model, at::kCPU)->class_names();
}

DrawingJob drawing_job(const Dataset& data, int64_t index, const TeacherDrawing& d, const std::vector<std::string>& classes) {
  const Sample s = data.get(index, static_cast<uint64_t>(d.seed), 0);
  DrawingJob job{.index = index, .id = s.id, .label = s.label, .caption = s.caption, .prompt = s.caption};
  if (s.image.defined()) {
    job.height = s.image.size(1), job.width = s.image.size(2);
  } else {
    const std::vector<BucketSize> sizes = data.buckets();
    if (sizes.empty()) fail<ConfigError>("{}: holds latents of an unknown picture size; draw from the images' data set", data.description());
    const BucketSize size = sizes[static_cast<size_t>(data.bucket_of(index))];
    job.height = size.height, job.width = size.width;
  }
  if (!classes.empty()) {
    if (s.label < 0 || s.label >= static_cast<int64_t>(classes.size()))
      fail<DataError>("sample {}: class {} is none of the model's {}", s.id, s.label, classes.size());
    job.prompt = classes[static_cast<size_t>(s.label)];
  }
  return job;
}

}  // namespace

TeacherImageWriter::TeacherImageWriter(fs::path out, TeacherFacts facts, int64_t part_rows)
    : out_(std::move(out)), facts_(std::move(facts)), part_rows_(part_rows) {
  FEW_CHECK(part_rows_ > 0, "parts of {} rows", part_rows_);
  if (fs::exists(out_)) {
    refuse_other_facts(out_, read_teacher_facts(io::H5File::open(out_)), facts_);
    complete_ = true, done_ = facts_.count;
    return;
  }
  make_directories(teacher_parts(out_));
  for (; fs::exists(part(parts_)); ++parts_) {
    const io::H5File file = io::H5File::open(part(parts_));
    refuse_other_facts(teacher_parts(out_), read_teacher_facts(file), facts_);
    for (const auto& size : read_teacher_sizes(file)) done_ += file.shape(teacher_group(size) + "/ids").front();
  }
}

fs::path TeacherImageWriter::part(int64_t number) const { return teacher_parts(out_) / fmt::format("part-{:06}.h5", number); }

void TeacherImageWriter::add(std::vector<TeacherRow> rows) {
  FEW_CHECK(!complete_, "{} is complete", out_.string());
  for (TeacherRow& row : rows) {
    rows_.push_back(std::move(row));
    if (static_cast<int64_t>(rows_.size()) == part_rows_) write_part();
  }
}

void TeacherImageWriter::write_part() {
  if (rows_.empty()) return;
  std::map<std::string, std::vector<const TeacherRow*>> groups;
  for (const TeacherRow& row : rows_) groups[teacher_group(row.image.sizes())].push_back(&row);
  TeacherFile file(part(parts_), facts_);
  for (const auto& [name, members] : groups) {
    std::vector<Tensor> images;
    GroupRows more;
    for (const TeacherRow* row : members) {
      images.push_back(row->image);
      more.ids.push_back(row->id), more.labels.push_back(row->label), more.captions.push_back(row->caption);
    }
    file.append(images.front().sizes().vec(), at::stack(images), more);
  }
  file.commit();
  ++parts_, done_ += static_cast<int64_t>(rows_.size());
  rows_.clear();
}

void TeacherImageWriter::finish() {
  if (complete_) return;
  write_part();
  TeacherFile whole(out_, facts_);
  for (int64_t p = 0; p < parts_; ++p) {
    const io::H5File file = io::H5File::open(part(p));
    for (const auto& size : read_teacher_sizes(file)) {
      const std::string name = teacher_group(size);
      whole.append(size, file.read(name + "/images"),
                   {.ids = merged_column(file.read(name + "/ids")), .labels = merged_column(file.read(name + "/labels")),
                    .captions = file.read_strings(name + "/captions")});
    }
  }
  whole.commit();
  fs::remove_all(teacher_parts(out_));
  complete_ = true;
}

TeacherFacts draw_teacher_images(const Dataset& dataset, const fs::path& model_folder, at::Device device, const TeacherDrawing& drawing,
                                 const fs::path& out, const std::function<void(int64_t, int64_t)>& progress) {
  const int64_t count = drawing.count > 0 ? drawing.count : dataset.size();
  if (count < 1 || count > dataset.size())
    fail<ConfigError>("--count: {} images for the {} samples of {}; at most one a sample", count, dataset.size(), dataset.description());
  const fs::path model = pipelines::find_model(model_folder);
  TeacherFacts facts{.model = model_identity(model), .model_name = drawing.model_name.empty() ? model_folder.string() : drawing.model_name,
                     .source = dataset.description(), .source_fingerprint = dataset.fingerprint(), .split = std::string(name_of(drawing.split)),
                     .count = count, .seed = drawing.seed};
  pipelines::GenerateOptions told = drawing.sampling;
  told.batch_size = pipelines::GenerateOptions().batch_size;  // changes no image
  facts.options = pipelines::changed_options(told);
  TeacherImageWriter writer(out, facts, drawing.part_rows);
  const int64_t finished = writer.done();
  if (progress) progress(finished, count);
  if (writer.complete()) return facts;
  const std::vector<std::string> classes = model_classes(model);
  const auto pipeline = pipelines::load(model, device);
  const auto batch = static_cast<size_t>(drawing.sampling.batch_size);
  int64_t at_sample = finished;
  std::vector<DrawingJob> jobs;  // of one size
  const auto flush = [&] {
    if (jobs.empty()) return;
    pipelines::GenerateOptions options = drawing.sampling;
    options.diffusion.height = jobs.front().height, options.diffusion.width = jobs.front().width;
    std::vector<std::string> prompts;
    std::vector<int64_t> ids;
    for (const DrawingJob& job : jobs) prompts.push_back(job.prompt), ids.push_back(job.id);
    const Tensor images = pipeline->generate(prompts, static_cast<uint64_t>(drawing.seed), ids, options).images;
    std::vector<TeacherRow> rows;
    for (size_t i = 0; i < jobs.size(); ++i)
      rows.push_back({.image = images[static_cast<int64_t>(i)], .id = jobs[i].id, .label = jobs[i].label, .caption = jobs[i].caption});
    writer.add(std::move(rows));
    jobs.clear();
    if (progress) progress(at_sample, count);
  };
  for (; at_sample < count; ++at_sample) {
    const int64_t index = at_sample * dataset.size() / count;  // evenly spread
    DrawingJob job = drawing_job(dataset, index, drawing, classes);
    if (!jobs.empty() && (jobs.size() == batch || job.height != jobs.front().height || job.width != jobs.front().width)) flush();
    jobs.push_back(std::move(job));
  }
  flush();
  writer.finish();
  return facts;
}

}  // namespace fewstep
