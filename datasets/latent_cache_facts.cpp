// What a latent cache depends on: its key, and the identity of encoders.
#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "datasets/latent_cache.h"
#include "src/base/error.h"
#include "src/base/hash.h"
#include "src/base/json.h"

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
  CacheFacts f;
  try {
    f.version = json.at("version").get<int64_t>();
    f.source = json.at("source").get<std::string>();
    f.source_fingerprint = json.at("source_fingerprint").get<std::string>();
    f.split = json.at("split").get<std::string>();
    f.framing = json.at("framing");
    f.vae = json.at("vae").get<std::string>(), f.vae_name = json.at("vae_name").get<std::string>();
    f.text = json.at("text").get<std::string>(), f.text_name = json.at("text_name").get<std::string>();
    f.variants = json.at("variants").get<int64_t>(), f.seed = json.at("seed").get<int64_t>();
    f.smallest_bucket = json.at("smallest_bucket").get<int64_t>();
    f.dtype = json.at("dtype").get<std::string>();
  } catch (const Json::exception& e) {
    fail<DataError>("{}: {}", where, e.what());
  }
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

fs::path vae_folder(const fs::path& folder) {
  for (const fs::path& candidate : {folder / "vae", folder})
    if (fs::exists(candidate / "config.json")) return candidate;
  fail<DataError>("{}: neither vae/config.json nor config.json is in it", folder.string());
}

std::string vae_identity(const fs::path& folder) { return folders_identity(std::array{vae_folder(folder)}); }

std::string text_encoder_identity(const fs::path& model_folder) {
  std::vector<fs::path> parts;
  for (const char* name : {"text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"})
    if (fs::is_directory(model_folder / name)) parts.push_back(model_folder / name);
  if (parts.empty()) fail<DataError>("{}: no text_encoder or text_encoder_2 in it", model_folder.string());
  return folders_identity(parts);
}

}  // namespace fewstep
