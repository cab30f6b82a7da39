#include "src/models/model_folder.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <system_error>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/hash.h"
#include "src/base/log.h"
#include "src/io/checkpoint.h"
#include "src/models/model.h"
#include "src/models/stability_checkpoint.h"

namespace fewstep::models {
namespace fs = std::filesystem;
namespace {

constexpr const char* kModelIndex = "model_index.json";
constexpr int kUnpackVersion = 1;  // of what unpack_single_file makes: older folders of the cache are not used

// SHA-256 of a file, remembered in the cache by path, size and time: a large checkpoint is hashed once.
std::string remembered_hash(const fs::path& file) {
  const fs::path absolute = fs::absolute(file);
  const auto time = fs::last_write_time(absolute).time_since_epoch().count();
  const std::string identity = fmt::format("{} {}", fs::file_size(absolute), time);
  const fs::path note = cache_folder() / "hashes" / (sha256_hex(absolute.string()) + ".json");
  if (fs::exists(note)) {
    const Json known = read_json(note);
    // Only a cache: what cannot be read is made anew.
    if (known.is_object() && known.value("identity", Json()) == identity && known.value("sha256", Json()).is_string())
      return known.at("sha256").get<std::string>();
  }
  const std::string hash = sha256_file(absolute.string());
  make_directories(note.parent_path());
  write_json(note, {{"path", absolute.string()}, {"identity", identity}, {"sha256", hash}});
  return hash;
}

// Written beside its final place and renamed: a folder in the cache is whole, also when two processes unpack at once.
fs::path unpack_once(const fs::path& file) {
  const fs::path target = cache_folder() / "models" / fmt::format("{}-{}", remembered_hash(file).substr(0, 32), kUnpackVersion);
  const fs::path beside = file.has_parent_path() ? file.parent_path() : fs::path(".");
  if (fs::exists(target / kModelIndex)) {
    add_tokenizers(beside, target);  // they may have come since
    return target;
  }
  const SingleFile checkpoint = read_single_file(file);
  std::string pattern = target.string() + ".tmp-XXXXXX";
  make_directories(target.parent_path());
  if (::mkdtemp(pattern.data()) == nullptr) fail<DataError>("{}: no folder can be made there", target.parent_path().string());
  const fs::path temporary = pattern;
  std::error_code code;
  try {
    unpack_single_file(checkpoint, temporary);
    fs::rename(temporary, target, code);
  } catch (...) {
    fs::remove_all(temporary, code);
    throw;
  }
  if (code) {  // another process was faster, or the disk fails
    const std::string why = code.message();
    fs::remove_all(temporary, code);
    if (!fs::exists(target / kModelIndex)) fail<DataError>("{}: cannot be made: {}", target.string(), why);
  }
  log::info("{}: unpacked to {}", file.string(), target.string());
  return target;
}

}  // namespace

fs::path cache_folder() {
  const auto value = [](const char* name) { const char* v = std::getenv(name); return std::string(v == nullptr ? "" : v); };
  if (const std::string own = value("FEWSTEP_CACHE"); !own.empty()) return own;
  if (const std::string cache = value("XDG_CACHE_HOME"); !cache.empty()) return fs::path(cache) / "fewstep";
  if (const std::string home = value("HOME"); !home.empty()) return fs::path(home) / ".cache" / "fewstep";
  fail<ConfigError>("no folder for the cache: neither FEWSTEP_CACHE nor HOME is set");
}

fs::path as_model_folder(const fs::path& path) {
  std::error_code code;
  if (!fs::exists(path, code)) fail<DataError>("{}: no such file or folder", path.string());
  if (fs::is_regular_file(path, code)) {
    if (path.extension() == ".safetensors") return unpack_once(path);
    fail<DataError>("{}: neither a model folder nor a .safetensors file{}", path.string(),
                    path.extension() == ".ckpt" || path.extension() == ".pt" || path.extension() == ".bin"
                        ? " (pickles are not read: tools/convert_weights.py FILE OUT.safetensors --kind checkpoint converts them)"
                        : "");
  }
  for (const fs::path& candidate : {path, path / "model"})
    if (fs::exists(candidate / kModelIndex, code)) return candidate;
  if (const auto checkpoint = io::find_checkpoint(path)) return *checkpoint / "model";
  fail<DataError>("{}: neither a model folder (model_index.json) nor a run with a whole checkpoint", path.string());
}

fs::path component_folder(const fs::path& named, std::initializer_list<std::string_view> names) {
  const fs::path path = named.has_filename() ? named : named.parent_path();  // without a "/" at its end
  const auto look_in = [&](const fs::path& folder) {
    for (const std::string_view name : names)
      if (fs::exists(folder / name / "config.json")) return folder / name;
    return fs::path();
  };
  if (const fs::path found = look_in(path); !found.empty()) return found;
  if (fs::exists(path / "config.json")) return path;
  const fs::path model = as_model_folder(path);
  if (const fs::path found = look_in(model); !found.empty()) return found;
  fail<DataError>("{}: there is no {}/config.json in it", model.string(), fmt::join(names, "/config.json and no "));
}

const ModelComponent* ModelFolder::find(std::string_view name) const {
  for (const ModelComponent& c : components)
    if (c.name == name) return &c;
  return nullptr;
}

ModelFolder read_model_folder(const fs::path& path) {
  const fs::path index_path = path / kModelIndex;
  if (!fs::exists(index_path)) fail<DataError>("{}: no model_index.json: not the folder of a pipeline", path.string());
  ModelFolder out{.path = path, .index = read_json(index_path), .components = {}};
  if (!out.index.is_object()) fail<DataError>("{}: expected a JSON object, found {}", index_path.string(), out.index.type_name());
  for (const auto& [name, value] : out.index.items()) {
    if (!value.is_array() || value.size() != 2 || !value[0].is_string() || !value[1].is_string()) continue;  // settings, [null, null]
    const fs::path folder = path / name;
    if (fs::path(name).filename() != name || !fs::is_directory(folder)) continue;
    out.components.push_back({name, value[0].get<std::string>(), value[1].get<std::string>(), folder});
  }
  return out;
}

std::vector<fs::path> files_below(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code code;
  for (fs::recursive_directory_iterator it(folder, code), end; !code && it != end; it.increment(code))
    if (it->is_regular_file()) files.push_back(it->path().lexically_relative(folder));
  if (code) fail<DataError>("{}: cannot be listed: {}", folder.string(), code.message());
  std::sort(files.begin(), files.end());
  return files;
}

void place_file(const fs::path& from, const fs::path& to) {
  make_directories(to.parent_path());
  std::error_code code;
  fs::create_hard_link(fs::canonical(from, code), to, code);  // of what a symbolic link stands for
  if (!code) return;
  fs::copy_file(from, to, code);
  if (code) fail<DataError>("{} cannot be copied to {}: {}", from.string(), to.string(), code.message());
}

}  // namespace fewstep::models
