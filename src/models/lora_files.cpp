#include "src/models/lora_files.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/hash.h"
#include "src/base/json.h"
#include "src/io/safetensors.h"
#include "src/models/model_folder.h"
#include "src/nn/module.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::models {
namespace fs = std::filesystem;
namespace {

constexpr const char *kPeftWeights = "adapter_model.safetensors", *kPeftConfig = "adapter_config.json", *kAdapterKey = "lora_adapter_metadata";

enum class LoraHalf { a, b, alpha };
constexpr std::pair<std::string_view, LoraHalf> kLoraEnds[] = {
    {".lora_A.weight", LoraHalf::a},    {".lora_B.weight", LoraHalf::b},  {".lora_A.default.weight", LoraHalf::a}, {".lora_B.default.weight", LoraHalf::b},
    {".lora_down.weight", LoraHalf::a}, {".lora_up.weight", LoraHalf::b}, {".lora.down.weight", LoraHalf::a},      {".lora.up.weight", LoraHalf::b},
    {".alpha", LoraHalf::alpha}};

// alpha where the layer has no ".alpha": one for all, and by ends of names.
struct LoraAlphas {
  std::optional<double> all = {};
  std::map<std::string, double> patterns = {};
  double of(const std::string& layer, int64_t rank) const {
    for (const auto& [end, alpha] : patterns)
      if (layer == end || layer.ends_with("." + end)) return alpha;
    return all.value_or(static_cast<double>(rank));
  }
};

// PEFT's LoraConfig, or diffusers' copy of it with "unet." before every key.
LoraAlphas alphas_of_config(const Json& config, const std::string& prefix, const std::string& where) {
  LoraAlphas out;
  if (!config.is_object()) fail<DataError>("{}: expected a JSON object, found {}", where, config.type_name());
  const auto entry = [&](const char* key) { return config.contains(prefix + key) ? config.at(prefix + key) : Json(); };
  for (const char* other : {"use_dora", "use_rslora"})
    if (entry(other) == Json(true)) fail<DataError>("{}: {} is true: only plain LoRA is read, W + alpha / r B A", where, other);
  if (const Json alpha = entry("lora_alpha"); alpha.is_number()) out.all = alpha.get<double>();
  if (const Json patterns = entry("alpha_pattern"); patterns.is_object())
    for (const auto& [end, alpha] : patterns.items())
      if (alpha.is_number()) out.patterns[end] = alpha.get<double>();
  return out;
}

LoraAlphas alphas_beside(const fs::path& file, const std::map<std::string, std::string>& metadata, const std::string& component) {
  if (const auto it = metadata.find(kAdapterKey); it != metadata.end()) {
    const Json config = Json::parse(it->second, nullptr, false);
    if (config.is_discarded()) fail<DataError>("{}: its {} is no JSON", file.string(), kAdapterKey);
    return alphas_of_config(config, component + ".", file.string() + ": " + kAdapterKey);
  }
  const fs::path config = file.parent_path() / kPeftConfig;
  return fs::exists(config) ? alphas_of_config(read_json(config), "", config.string()) : LoraAlphas{};
}

std::pair<std::string, LoraHalf> split_lora_key(const std::string& key, bool& known) {
  for (const auto& [end, half] : kLoraEnds)
    if (known = key.ends_with(end); known) return {key.substr(0, key.size() - end.size()), half};
  return {};
}

void check_lora_layer(const LoraLayer& l, const std::string& layer, const std::string& where) {
  if (!l.a.defined() || !l.b.defined())
    fail<DataError>("{}: layer '{}' has one half of its adapter only ({} is missing)", where, layer, l.a.defined() ? "B, up" : "A, down");
  if (l.a.dim() < 2 || l.b.dim() < 2 || l.a.size(0) < 1 || l.a.size(0) != l.b.size(1))
    fail<DataError>("{}: layer '{}': A is [{}] and B is [{}]: not of one rank", where, layer, fmt::join(l.a.sizes(), ", "), fmt::join(l.b.sizes(), ", "));
}

// alpha / r B A as W is laid out; float32 at least.
Tensor lora_change(const LoraLayer& l, const Tensor& weight) {
  const at::ScalarType type = weight.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto matrix = [&](const Tensor& t) { return t.to(weight.options().dtype(type)).flatten(1); };
  return at::mm(matrix(l.b), matrix(l.a)).mul_(l.alpha / static_cast<double>(l.rank())).view(weight.sizes());
}

// B takes alpha / r, in float32.
Tensor folded_lora_b(const LoraLayer& l) { return l.b.to(at::kFloat) * (l.alpha / static_cast<double>(l.rank())); }

}  // namespace

fs::path find_lora(const fs::path& path) {
  std::error_code code;
  if (!fs::exists(path, code)) fail<DataError>("{}: no such file or folder", path.string());
  if (!fs::is_directory(path, code)) return path;
  for (const char* name : {kLoraWeights, kPeftWeights})
    if (fs::exists(path / name, code)) return path / name;
  fs::path model;
  try {
    model = as_model_folder(path);
  } catch (const DataError&) {
    fail<DataError>("{}: no LoRA in it: expected {} or {}, or a run with an adapter", path.string(), kLoraWeights, kPeftWeights);
  }
  if (!fs::exists(model / "adapter" / kPeftWeights, code))
    fail<DataError>("{}: a model without an adapter (adapter/{}): it was trained in full, or is the base itself", model.string(), kPeftWeights);
  return model / "adapter" / kPeftWeights;
}

LoraFile read_lora(const fs::path& path, const LoraNames& names) {
  LoraFile out{.path = find_lora(path), .layers = {}, .metadata = {}};
  const std::string where = out.path.string();
  const io::Safetensors file(out.path);
  out.metadata = file.metadata();
  std::set<std::string> with_alpha;
  std::vector<std::string> unknown;
  for (const auto& [key, tensor] : file.all()) {
    bool known = false;
    const auto [name, half] = split_lora_key(key, known);
    const auto layer = known ? names.layer_of(name) : std::nullopt;
    if (!layer) {
      unknown.push_back(key);
      continue;
    }
    LoraLayer& l = out.layers[*layer];
    if (half == LoraHalf::alpha) {
      if (tensor.numel() != 1) fail<DataError>("{}: '{}' is not one number", where, key);
      l.alpha = tensor.to(at::kDouble).item<double>();
      with_alpha.insert(*layer);
      continue;
    }
    Tensor& slot = half == LoraHalf::a ? l.a : l.b;
    if (slot.defined()) fail<DataError>("{}: layer '{}' is there twice, the second time as '{}'", where, *layer, key);
    slot = tensor;
  }
  if (!unknown.empty())
    fail<DataError>("{}: {} of {} keys belong to no layer of this {}, the first: '{}' ({} layers matched); is it a LoRA of this network, and a plain one (no "
                    "text encoder, LoHa, LoKr, DoRA)?",
                    where, unknown.size(), file.names().size(), names.component(), unknown.front(), out.layers.size());
  if (out.layers.empty()) fail<DataError>("{}: no tensors in it", where);
  const LoraAlphas alphas = alphas_beside(out.path, out.metadata, names.component());
  for (auto& [layer, l] : out.layers) {
    check_lora_layer(l, layer, where);
    if (!with_alpha.contains(layer)) l.alpha = alphas.of(layer, l.rank());
  }
  const fs::path beside = out.path.parent_path();
  for (const fs::path& folder : {beside / "scheduler", beside.filename() == "adapter" ? beside.parent_path() / "scheduler" : fs::path()})
    if (out.scheduler.empty() && !folder.empty() && fs::is_directory(path) && fs::exists(folder / "scheduler_config.json")) out.scheduler = folder;
  return out;
}

TensorMap lora_tensors(const LoraLayers& layers, const LoraNames& names, LoraForm form, std::optional<at::ScalarType> dtype) {
  const NoGrad no_grad;
  const auto stored = [&](const Tensor& t) { return (dtype ? t.to(*dtype) : t).contiguous(); };
  TensorMap out;
  for (const auto& [layer, l] : layers) {
    const std::string name = names.in_file(layer, form);
    const bool peft = form == LoraForm::peft;
    const Tensor b = peft ? dtype ? folded_lora_b(l) : folded_lora_b(l).to(l.b.scalar_type()) : l.b;
    if (!out.emplace(name + (peft ? ".lora_A.weight" : ".lora_down.weight"), stored(l.a)).second)
      fail<ConfigError>("'{}': two layers have this name", name);
    out.emplace(name + (peft ? ".lora_B.weight" : ".lora_up.weight"), stored(b));
    if (!peft) out.emplace(name + ".alpha", at::scalar_tensor(l.alpha, at::kFloat));
  }
  return out;
}

std::string lora_adapter_metadata(const LoraLayers& layers, const std::string& component) {
  std::map<int64_t, int64_t> ranks;
  Json targets = Json::array();
  for (const auto& [layer, l] : layers) {
    ++ranks[l.rank()];
    targets.push_back(layer);
  }
  const auto most = std::max_element(ranks.begin(), ranks.end(), [](const auto& x, const auto& y) { return x.second < y.second; });
  Json others = Json::object();
  for (const auto& [layer, l] : layers)
    if (l.rank() != most->first) others[layer] = l.rank();
  Json out = {{component + ".r", most->first}, {component + ".lora_alpha", most->first}, {component + ".target_modules", targets}};
  if (!others.empty()) out[component + ".rank_pattern"] = others, out[component + ".alpha_pattern"] = others;
  return out.dump();
}

std::string lora_legacy_hash(const fs::path& file) {
  constexpr size_t kFrom = 0x100000, kLength = 0x10000;
  const MappedFile map(file);
  const size_t length = map.size() > kFrom ? std::min(kLength, map.size() - kFrom) : 0;
  return sha256_hex(std::string_view(reinterpret_cast<const char*>(map.data()) + (length > 0 ? kFrom : 0), length)).substr(0, 8);
}

TensorMap with_lora(const nn::Module& module, const LoraLayers& layers, double strength, std::string_view where) {
  const NoGrad no_grad;
  TensorMap out;
  for (const auto& [name, tensor] : module.state()) out.emplace(name, tensor.detach());
  for (const auto& [layer, l] : layers) {
    const auto it = out.find(layer + ".weight");
    if (it == out.end()) fail<DataError>("{}: the network has no layer '{}'", where, layer);
    Tensor& weight = it->second;
    const int64_t outputs = weight.size(0);
    if (weight.dim() < 2 || l.b.numel() != outputs * l.rank() || l.b.size(0) != outputs || l.a.numel() != weight.numel() / outputs * l.rank())
      fail<DataError>("{}: layer '{}' is [{}] in the network; A [{}] and B [{}] do not fit: it is a LoRA of another network", where, layer,
                      fmt::join(weight.sizes(), ", "), fmt::join(l.a.sizes(), ", "), fmt::join(l.b.sizes(), ", "));
    const Tensor change = lora_change(l, weight);
    weight = at::add(weight.to(change.scalar_type()), change, strength).to(weight.scalar_type());
  }
  return out;
}

}  // namespace fewstep::models
