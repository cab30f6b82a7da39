#include "eval/generation.h"

#include <chrono>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/hash.h"
#include "src/base/json.h"
#include "src/base/log.h"
#include "src/base/progress.h"
#include "src/base/signals.h"
#include "src/base/text.h"
#include "src/io/image.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace {

namespace fs = std::filesystem;
constexpr const char* kGenerationFormat = "fewstep-generation-1";

// What an image took; kept in a line of JSON beside it, since a later start must report means over all images.
struct Drawn {
  double steps = 0, nfe = 0, compression = 0;
};
using Record = std::map<int64_t, Drawn>;  // by caption id

Json identity_of(const GenerationPlan& plan) {
  pipelines::GenerateOptions options = plan.options;
  options.batch_size = pipelines::GenerateOptions().batch_size;  // samples do not depend on it
  return {{"format", kGenerationFormat},
          {"model_sha256", plan.model_sha256},
          {"seed", plan.seed},
          {"shared_noise", plan.shared_noise},
          {"prompts", plan.prompts.size()},
          {"prompts_sha256", prompts_sha256(plan.prompts)},
          {"options", pipelines::changed_options(options)}};
}

void claim_folder(const GenerationPlan& plan) {
  const Json own = identity_of(plan);
  const fs::path path = plan.folder / "generation.json";
  if (!fs::exists(path)) {
    make_directories(plan.folder);
    write_json(path, own);
    return;
  }
  const Json found = read_json(path);
  std::string differing;
  for (const auto& [key, value] : own.items())
    if (!found.contains(key) || found[key] != value)
      differing += fmt::format("{}{} is {}, now {}", differing.empty() ? "" : "; ", key,
                               found.contains(key) ? found[key].dump() : "missing", value.dump());
  if (!differing.empty())
    fail<ConfigError>("{}: holds samples of another evaluation ({}); give another 'out', or delete the folder",
                      plan.folder.string(), differing);
}

// drawn-<rank>.jsonl of every earlier start; a last line that was torn by a kill counts as not drawn.
Record read_record(const fs::path& folder) {
  Record record;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("drawn-") || entry.path().extension() != ".jsonl") continue;
    std::ifstream file(entry.path());
    for (std::string line; std::getline(file, line);) {
      const Json row = Json::parse(line, nullptr, false);
      if (!row.is_object() || !row.contains("caption_id")) continue;
      const auto id = row["caption_id"].get<int64_t>();
      if (fs::exists(folder / sample_name(id)))
        record[id] = {row.value("steps", 0.0), row.value("nfe", 0.0), row.value("step_compression", 0.0)};
    }
  }
  return record;
}

// A torn line must not swallow the next one.
void end_last_line(const fs::path& path) {
  if (!fs::exists(path) || fs::file_size(path) == 0) return;
  const std::string text = read_text(path);
  if (text.back() != '\n') std::ofstream(path, std::ios::app) << '\n';
}

struct Batch {
  std::vector<std::string> texts;
  std::vector<int64_t> ids, noise;
};

void draw(const GenerationPlan& plan, const Batch& batch, const fs::path& record, pipelines::Pipeline& pipeline) {
  const auto made = pipeline.generate(batch.texts, plan.seed, batch.noise, plan.options);
  for (size_t i = 0; i < batch.ids.size(); ++i) {
    const auto row = static_cast<int64_t>(i);
    io::write_image(plan.folder / sample_name(batch.ids[i]), made.images[row]);
    append_jsonl(record, {{"caption_id", batch.ids[i]},
                          {"steps", made.steps},
                          {"nfe", made.nfe},
                          {"step_compression", made.step_compression}});
  }
}

void write_metadata(const GenerationPlan& plan) {
  std::string text;
  for (const Prompt& p : plan.prompts)
    text += Json{{"file_name", sample_name(p.caption_id)},
                 {"text", p.text},
                 {"caption_id", p.caption_id},
                 {"image_id", p.image_id},
                 {"seed", plan.seed}}
                .dump(-1, ' ', false, Json::error_handler_t::replace) +
            "\n";
  write_text_atomic(plan.folder / "metadata.jsonl", text);
}

// {made, kept, seconds} of all ranks.
GenerationResult agree(int64_t made, double seconds, size_t prompts, dist::World& world) {
  Tensor count = at::scalar_tensor(made, at::kLong).view({1}).to(world.device());
  Tensor slowest = at::scalar_tensor(seconds, at::kDouble).view({1}).to(world.device());
  world.all_reduce_sum(count);
  world.all_reduce_max(slowest);
  GenerationResult result{.made = count.item<int64_t>(), .seconds = slowest.item<double>()};
  result.kept = static_cast<int64_t>(prompts) - result.made;
  return result;
}

}  // namespace

std::string sample_name(int64_t caption_id) { return fmt::format("{:012}.png", caption_id); }

std::string model_sha256(const fs::path& model) {
  std::vector<std::string> lines;
  for (const auto& entry : fs::recursive_directory_iterator(model))
    if (entry.is_regular_file() && entry.path().extension() == ".safetensors")
      lines.push_back(fs::relative(entry.path(), model).generic_string() + " " + sha256_file(entry.path().string()));
  std::sort(lines.begin(), lines.end());
  std::string all;
  for (const std::string& line : lines) all += line + "\n";
  return sha256_hex(all);
}

GenerationResult generate_images(const GenerationPlan& plan, pipelines::Pipeline& pipeline, dist::World& world) {
  if (world.is_main()) claim_folder(plan);
  world.barrier();
  const Record earlier = read_record(plan.folder);
  const fs::path record = plan.folder / fmt::format("drawn-{}.jsonl", world.rank());
  end_last_line(record);
  world.barrier();  // nobody draws before everybody has read what is there
  std::vector<const Prompt*> missing;
  for (size_t i = 0; i < plan.prompts.size(); ++i)
    if (!earlier.contains(plan.prompts[i].caption_id)) missing.push_back(&plan.prompts[i]);
  std::vector<const Prompt*> own;
  for (size_t i = static_cast<size_t>(world.rank()); i < missing.size(); i += static_cast<size_t>(world.size()))
    own.push_back(missing[i]);
  if (!missing.empty() && missing.size() < plan.prompts.size())
    log::info("{}: {} of {} samples are there, {} are missing", plan.folder.string(),
              plan.prompts.size() - missing.size(), plan.prompts.size(), missing.size());

  const auto start = std::chrono::steady_clock::now();
  std::optional<Progress> progress;
  if (!own.empty()) progress.emplace("samples", static_cast<int64_t>(own.size()));
  const auto size = static_cast<size_t>(plan.options.batch_size);
  for (size_t i = 0; i < own.size(); i += size) {
    if (signals::stop_requested()) break;
    Batch batch;
    for (size_t j = i; j < std::min(i + size, own.size()); ++j) {
      batch.texts.push_back(own[j]->text);
      batch.ids.push_back(own[j]->caption_id);
      batch.noise.push_back(plan.shared_noise ? 0 : own[j]->caption_id);
    }
    draw(plan, batch, record, pipeline);
    progress->update(static_cast<int64_t>(i + batch.ids.size()));
  }
  if (progress && !signals::stop_requested()) progress->finish();
  // All stop together: none is left waiting in a collective.
  Tensor stopped = at::scalar_tensor(signals::stop_requested() ? 1 : 0, at::kLong).view({1}).to(world.device());
  world.all_reduce_max(stopped);
  if (stopped.item<int64_t>() != 0)
    throw Interrupted(fmt::format("stopped; the samples drawn so far are in {}, the same command goes on with them",
                                  plan.folder.string()));
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  GenerationResult result = agree(static_cast<int64_t>(own.size()), seconds.count(), plan.prompts.size(), world);
  if (world.is_main()) write_metadata(plan);
  const Record all = read_record(plan.folder);
  for (const auto& [id, drawn] : all) {
    result.steps += drawn.steps / static_cast<double>(all.size());
    result.nfe += drawn.nfe / static_cast<double>(all.size());
    result.step_compression += drawn.compression / static_cast<double>(all.size());
  }
  world.barrier();
  return result;
}

}  // namespace fewstep::eval
