#include "src/models/weight_files.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/io/safetensors.h"
#include "src/models/model.h"
#include "src/tensor/ops.h"

namespace fewstep::models {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kStems[] = {"model", "diffusion_pytorch_model"};
constexpr std::string_view kFile = ".safetensors", kIndex = ".safetensors.index.json";

// The places a variant's name has had: "model.fp16.safetensors"; of an index "model.safetensors.index.fp16.json" (both libraries
// write this one) and "model.fp16.safetensors.index.json".
std::vector<std::string> candidate_names(std::string_view variant) {
  std::vector<std::string> names;
  for (const std::string_view stem : kStems) {
    if (variant.empty()) {
      names.push_back(fmt::format("{}{}", stem, kFile));
      names.push_back(fmt::format("{}{}", stem, kIndex));
      continue;
    }
    names.push_back(fmt::format("{}.{}{}", stem, variant, kFile));
    names.push_back(fmt::format("{}{}.{}.json", stem, ".safetensors.index", variant));
    names.push_back(fmt::format("{}.{}{}", stem, variant, kIndex));
  }
  return names;
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code code;
  for (fs::directory_iterator it(folder, code), end; !code && it != end; it.increment(code))
    names.push_back(it->path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

// "fp16" of a weight file or index; "" of others, of plain ones and of shards (their index says it).
std::string variant_in(const std::string& file) {
  if (file.find("-of-") != file.npos) return {};
  for (const std::string_view stem : kStems) {
    if (!file.starts_with(std::string(stem) + ".")) continue;
    std::string rest = file.substr(stem.size());  // ".fp16.safetensors", ".safetensors.index.fp16.json"
    constexpr std::string_view kBefore = ".safetensors.index.";
    if (rest.starts_with(kBefore) && rest.ends_with(".json") && rest != kIndex)
      return rest.substr(kBefore.size(), rest.size() - kBefore.size() - 5);
    for (const std::string_view end : {kIndex, kFile})
      if (rest.ends_with(end) && rest.size() > end.size() && rest[0] == '.') return rest.substr(1, rest.size() - end.size() - 1);
  }
  return {};
}

std::set<std::string> variants_in(const fs::path& folder) {
  std::set<std::string> variants;
  for (const std::string& name : names_in(folder))
    if (std::string v = variant_in(name); !v.empty() && v.find('.') == v.npos) variants.insert(std::move(v));
  return variants;
}

std::optional<fs::path> look_for_weights(const fs::path& folder, std::string_view variant) {
  for (const std::string& name : candidate_names(variant))
    if (fs::exists(folder / name)) return folder / name;
  return std::nullopt;
}

// The tensors of each shard, filled in the order of the names.
std::vector<std::vector<std::string>> plan_shards(const TensorMap& tensors, const WeightOptions& options) {
  std::vector<std::vector<std::string>> shards(1);
  uint64_t used = 0;
  for (const auto& [name, t] : tensors) {
    const at::ScalarType type = options.dtype && t.is_floating_point() ? *options.dtype : t.scalar_type();
    const uint64_t bytes = static_cast<uint64_t>(t.numel()) * c10::elementSize(type);
    if (options.max_shard_bytes > 0 && used > 0 && used + bytes > options.max_shard_bytes) {
      shards.emplace_back();
      used = 0;
    }
    shards.back().push_back(name);
    used += bytes;
  }
  return shards;
}

}  // namespace

fs::path find_weights(const fs::path& folder) { return find_weights(folder, {}); }

fs::path find_weights(const fs::path& folder, std::string_view variant) {
  if (const auto found = look_for_weights(folder, variant)) return *found;
  const std::set<std::string> variants = variants_in(folder);
  if (variant.empty() && variants.size() == 1) return *look_for_weights(folder, *variants.begin());
  std::string there;
  for (const std::string& v : variants) there += (there.empty() ? "" : ", ") + v;
  if (!variant.empty())
    fail<DataError>("{}: no weights of variant '{}' ({})", folder.string(), variant,
                    there.empty() ? "there are no variants" : "there are: " + there);
  if (!variants.empty())
    fail<DataError>("{}: weights of several variants ({}) and no plain ones: name one of them", folder.string(), there);
  for (const std::string& name : names_in(folder)) {
    if (name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".ckpt"))
      fail<DataError>("{}: only pickled weights ({}), which are not read here: convert them with tools/convert_weights.py FILE OUT.safetensors --kind checkpoint",
                      folder.string(), name);
    if (name.find("-00001-of-") != name.npos)
      fail<DataError>("{}: shards of weights ({}) without their index ({} or {})", folder.string(), name, "model.safetensors.index.json",
                      "diffusion_pytorch_model.safetensors.index.json");
  }
  fail<DataError>("{}: no weights (model.safetensors or diffusion_pytorch_model.safetensors, or an index of shards)", folder.string());
}

bool has_weights(const fs::path& folder) { return look_for_weights(folder, {}) || !variants_in(folder).empty(); }

std::vector<fs::path> weight_files(const fs::path& folder, std::string_view variant) {
  const fs::path first = find_weights(folder, variant);
  std::vector<fs::path> files = {first};
  if (first.extension() != ".json") return files;
  const Json index = read_json(first);
  std::set<std::string> shards;
  if (const auto map = index.find("weight_map"); map != index.end() && map->is_object())
    for (const auto& [name, file] : map->items())
      if (file.is_string()) shards.insert(file.get<std::string>());
  if (shards.empty()) fail<DataError>("{}: no 'weight_map' with files: not a safetensors index", first.string());
  for (const std::string& shard : shards) files.push_back(folder / shard);
  return files;
}

std::string weight_stem(const Json& config) {
  return std::string(config.is_object() && config.contains("_class_name") ? kStems[1] : kStems[0]);
}

void write_weights(const fs::path& folder, const std::string& stem, const TensorMap& tensors, const WeightOptions& options) {
  make_directories(folder);
  const std::map<std::string, std::string> metadata = {{"format", "pt"}};  // transformers asks for "format"
  const std::string base = options.variant.empty() ? stem : stem + "." + options.variant;
  const auto shards = plan_shards(tensors, options);
  if (shards.size() == 1) {
    io::write_safetensors(folder / (base + std::string(kFile)), tensors, metadata, options.dtype);
    return;
  }
  Json map = Json::object();
  uint64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file = fmt::format("{}-{:05}-of-{:05}{}", base, i + 1, shards.size(), kFile);
    TensorMap part;
    for (const std::string& name : shards[i]) {
      const Tensor& t = part[name] = tensors.at(name);
      total += static_cast<uint64_t>(t.numel()) * c10::elementSize(options.dtype && t.is_floating_point() ? *options.dtype : t.scalar_type());
      map[name] = file;
    }
    io::write_safetensors(folder / file, part, metadata, options.dtype);
  }
  const std::string index = stem + ".safetensors.index." + (options.variant.empty() ? "" : options.variant + ".") + "json";
  write_json(folder / index, {{"metadata", {{"total_size", total}}}, {"weight_map", std::move(map)}});
}

}  // namespace fewstep::models
