#include "trainers/run_folder.h"

#include <ATen/Parallel.h>
#include <nlohmann/json.hpp>

#include <fstream>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/hash.h"
#include "src/base/log.h"
#include "src/base/text.h"
#include "src/base/version.h"
#include "src/config/diff.h"
#include "src/io/checkpoint.h"
#include "src/io/image.h"
#include "src/io/safetensors.h"
#include "src/io/tensorboard.h"
#include "src/models/json_fields.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace fs = std::filesystem;

struct RunFolder::Impl {
  explicit Impl(const fs::path& f) : folder(f), lock(f / "lock"), tensorboard(f / "tb") {}
  fs::path folder;
  FileLock lock;
  io::TensorBoardWriter tensorboard;
};

RunFolder::RunFolder(const fs::path& folder, const std::string& resolved_config) {
  make_directories(folder);
  impl_ = std::make_unique<Impl>(folder);
  write_text_atomic(folder / "config.yaml", resolved_config);
}

RunFolder::~RunFolder() = default;

void RunFolder::log(const std::string& group, const Json& fields, const std::map<std::string, double>& means, int64_t step) {
  Json line = fields;
  line["group"] = group;
  for (const auto& [name, value] : means) {
    line[name] = value;
    impl_->tensorboard.scalar(group + "/" + name, value, step);
  }
  append_jsonl(impl_->folder / "metrics.jsonl", line);
}

void RunFolder::save_samples(const Tensor& grid, int64_t step) {
  if (!grid.defined()) return;
  make_directories(impl_->folder / "samples");
  io::write_image(impl_->folder / "samples" / fmt::format("step-{:09}.png", step), grid);
  impl_->tensorboard.image("samples", io::encode_png(grid), grid.size(2), grid.size(1), step);
}

void RunFolder::flush() { impl_->tensorboard.flush(); }

namespace {

// What bit-for-bit resume depends on beside the files themselves.
Json environment(int world_size) {
  std::string cpu = "unknown", line;
  std::ifstream info("/proc/cpuinfo");
  while (std::getline(info, line))
    if (line.starts_with("model name")) {
      cpu = std::string(trim(line.substr(line.find(':') + 1)));
      break;
    }
  return {{"commit", build_commit()}, {"cpu", cpu}, {"threads", at::get_num_threads()}, {"world_size", world_size}};
}

constexpr int kFormatVersion = 1;

bool pictures_only(std::string_view key) { return key.starts_with("trainer.sample."); }

// Of a stage that is over nothing may change; of the one in progress its length, of those to come everything.
bool changes_a_past_stage(const std::string& key, const Json& saved) {
  const size_t close = key.find(']');
  if (close == std::string::npos) return true;  // there were none, or there are none now
  const int64_t stage = std::stoll(key.substr(7, close - 7)), current = saved.value("stage", int64_t{0});
  const std::string below = key.substr(std::min(key.size(), close + 2));
  return stage < current || (stage == current && below != "steps" && below != "name" && !pictures_only(below.substr(std::min<size_t>(4, below.size()))));
}

bool changes_the_run(const config::Difference& d, const Json& saved) {
  const std::string& key = d.key;
  // Keys that older checkpoints do not have, at the value that means what they did.
  if (d.before == "(absent)" && (d.after == "[]" ? key == "stages" : d.after == "run" && key == "schedule_over")) return false;
  if (d.before == "(absent)" && key.ends_with(".ema_warmup") && d.after == "none") return false;
  if (key.starts_with("stages")) return changes_a_past_stage(key, saved);
  if (pictures_only(key)) return false;
  return key.starts_with("trainer.") || key.starts_with("data.") || key == "seed" || key == "loop.batch_size" || key == "schedule_over";
}

}  // namespace

void write_checkpoint(const fs::path& target, const Trainer& trainer, const CheckpointState& state,
                      const std::string& resolved_config, int world_size) {
  io::CheckpointWriter writer(target);
  trainer.save_model(writer.folder() / "model");
  for (const auto& [stem, tensors] : trainer.state()) io::write_safetensors(writer.folder() / (stem + ".safetensors"), tensors);
  write_json(writer.folder() / "state.json",
             {{"format_version", kFormatVersion}, {"step", state.step}, {"epoch", state.epoch}, {"images", state.images},
              {"stage", state.stage}, {"seconds", state.seconds}, {"config_sha256", sha256_hex(resolved_config)},
              {"environment", environment(world_size)}, {"written", utc_timestamp()}});
  write_text_atomic(writer.folder() / "config.yaml", resolved_config);
  writer.commit();
}

CheckpointState checkpoint_state(const fs::path& folder) {
  const Json saved = read_json(folder / "state.json");
  const models::JsonDataFields fields(saved, (folder / "state.json").string());
  return {.step = fields.at<int64_t>("step"), .images = fields.at<int64_t>("images"), .epoch = fields.at<int64_t>("epoch"),
          .stage = fields.value("stage", int64_t{0}), .seconds = fields.at<double>("seconds")};
}

CheckpointState read_checkpoint(const fs::path& folder, Trainer& trainer, const std::string& resolved_config, int world_size,
                                const CarryConfig& carry) {
  const Json saved = read_json(folder / "state.json");
  const models::JsonDataFields fields(saved, (folder / "state.json").string());
  if (const auto version = fields.value("format_version", int64_t{0}); version != kFormatVersion)
    fail<DataError>("{}: checkpoint format {} is not {}, the one this program writes", folder.string(), version, kFormatVersion);
  std::string changed;
  for (const auto& d : config::differences(read_text(folder / "config.yaml"), resolved_config))
    if (changes_the_run(d, saved)) changed += fmt::format("\n  {}: {} -> {}", d.key, d.before, d.after);
    else if (d.key == "loop.steps")
      log::warn("loop.steps changes on resume: {} -> {}: a learning-rate schedule now ends elsewhere", d.before, d.after);
  if (!changed.empty())
    fail<ConfigError>("cannot resume from {}: these settings changed since it was written:{}\nPut them back, or start a new "
                      "run (another name or --run-dir).", folder.string(), changed);
  const Json now = environment(world_size);
  for (const auto& [key, value] : now.items())
    if (saved["environment"].value(key, Json()) != value)
      log::warn("resuming on another {} ({} -> {}): results continue, but not bit for bit", key,
                saved["environment"].value(key, Json()).dump(), value.dump());
  std::map<std::string, TensorMap> files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == ".safetensors") files[entry.path().stem()] = io::Safetensors(entry.path()).all();
  trainer.load_state(carry_over(std::move(files), trainer.state(), carry));
  return checkpoint_state(folder);
}

}  // namespace fewstep
