// What a latent cache depends on: its key, and the identity of encoders.
#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "datasets/latent_cache.h"
#include "src/base/error.h"
#include "src/base/hash.h"
#include "src/base/json.h"
#include "src/models/json_fields.h"

namespace fewstep {
namespace {
namespace fs = std::filesystem;
}  // namespace

Json CacheFacts::to_json() const {
  return {{"version", version},   {"source", source},   {"source_fingerprint", source_fingerprint},
          {"split", split},       {"framing", framing}, {"vae", vae},
          {"vae_name", vae_name}, {"text", text},       {"text_name", text_name},
          {"variants", variants}, {"seed", seed},       {"smallest_bucket", smallest_bucket},
          {"dtype", dtype}};
}

CacheFacts CacheFacts::from_json(const Json& json, std::string_view where) {
  const models::JsonDataFields fields(json, where);
  CacheFacts f;
  f.version = fields.at<int64_t>("version");
  f.source = fields.at<std::string>("source");
  f.source_fingerprint = fields.at<std::string>("source_fingerprint");
  f.split = fields.at<std::string>("split");
  if (!json.contains("framing")) fail<DataError>("{}: framing is missing", where);
  f.framing = json.at("framing");
  f.vae = fields.at<std::string>("vae"), f.vae_name = fields.at<std::string>("vae_name");
  f.text = fields.at<std::string>("text"), f.text_name = fields.at<std::string>("text_name");
  f.variants = fields.at<int64_t>("variants"), f.seed = fields.at<int64_t>("seed");
  f.smallest_bucket = fields.at<int64_t>("smallest_bucket");
  f.dtype = fields.at<std::string>("dtype");
  if (f.version != CacheFacts().version)
    fail<DataError>("{}: version {} of the format, this program reads {}", where, f.version, CacheFacts().version);
  if (f.variants < 1) fail<DataError>("{}: {} variants", where, f.variants);
  return f;
}

std::string CacheFacts::key() const {
  Json json = to_json();
  // Names are for people: the same weights in another folder make the same cache.
  for (const char* name : {"source", "vae_name", "text_name"}) json.erase(name);
  return sha256_hex(json.dump());  // in to_json's order
}

std::string CacheFacts::command(const fs::path& out) const {
  std::string line = fmt::format("fewstep data cache CONFIG --split {} --vae {} --out {}", split,
                                 vae_name.empty() ? "DIR" : vae_name, out.string());
  if (!text.empty()) line += fmt::format(" --text {}", text_name.empty() ? "DIR" : text_name);
  if (variants > 1) line += fmt::format(" --variants {}", variants);
  if (seed != 0) line += fmt::format(" --seed {}", seed);
  if (smallest_bucket > 0) line += fmt::format(" --smallest-bucket {}", smallest_bucket);
  if (dtype != CacheFacts().dtype) line += " --dtype " + dtype;
  return line;
}

std::string folders_identity(std::span<const fs::path> folders) {
  Sha256 hash;
  const auto add = [&](const std::string& text) { hash.update(text.c_str(), text.size() + 1); };
  for (const fs::path& folder : folders) {
    std::vector<std::string> names;
    std::error_code error;
    for (const auto& item : fs::directory_iterator(folder, error))
      if (item.is_regular_file() && item.path().filename().string().front() != '.')
        names.push_back(item.path().filename().string());
    if (error || names.empty()) fail<DataError>("{}: no files of a network in it", folder.string());
    std::sort(names.begin(), names.end());
    for (const std::string& name : names) {
      add(name);
      add(sha256_file((folder / name).string()));
    }
    add("");
  }
  return hash.hex();
}

std::string vae_identity(const fs::path& folder) {
  for (const fs::path& candidate : {folder / "vae", folder})
    if (fs::exists(candidate / "config.json")) return folders_identity(std::array{candidate});
  fail<DataError>("{}: neither vae/config.json nor config.json is in it", folder.string());
}

std::string text_encoder_identity(const fs::path& model_folder) {
  std::vector<fs::path> parts;
  for (const char* name : {"text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"})
    if (fs::is_directory(model_folder / name)) parts.push_back(model_folder / name);
  if (parts.empty()) fail<DataError>("{}: no text_encoder or text_encoder_2 in it", model_folder.string());
  return folders_identity(parts);
}

}  // namespace fewstep
