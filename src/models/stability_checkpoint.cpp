#include "src/models/stability_checkpoint.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/log.h"
#include "src/base/text.h"
#include "src/io/safetensors.h"
#include "src/models/json_fields.h"
#include "src/models/model.h"
#include "src/tensor/ops.h"

namespace fewstep::models {
namespace fs = std::filesystem;
namespace {

// The networks of a layout, and where they stand in a file; a prefix may be empty.
struct StabilityPlace {
  std::string_view prefix, component;
  StabilityPart part;
};
constexpr StabilityPlace kPlaces[] = {
    {"model.diffusion_model.", "unet", StabilityPart::unet},
    {"first_stage_model.", "vae", StabilityPart::vae},
    {"vae.", "vae", StabilityPart::vae},
    {"conditioner.embedders.0.transformer.", "text_encoder", StabilityPart::clip_text},
    {"cond_stage_model.transformer.", "text_encoder", StabilityPart::clip_text},
    {"conditioner.embedders.1.model.", "text_encoder_2", StabilityPart::open_clip_text},
    {"conditioner.embedders.0.model.", "text_encoder_2", StabilityPart::open_clip_text},
};
// Files with one network and no prefix, told by a name that every such network has.
constexpr std::pair<std::string_view, StabilityPlace> kBare[] = {
    {"input_blocks.0.0.weight", {"", "unet", StabilityPart::unet}},
    {"decoder.mid.block_1.conv1.weight", {"", "vae", StabilityPart::vae}},
};

// Marks of checkpoints that this layout's readers must not take for what they look like.
constexpr std::pair<std::string_view, std::string_view> kRefused[] = {
    {"edm_mean", "Playground 2.5 (EDM preconditioning)"},
    {"edm_std", "Playground 2.5 (EDM preconditioning)"},
    {"edm_vpred.sigma_max", "an EDM v-prediction model (CosXL)"},
    {"cond_stage_model.model.transformer.resblocks.0.ln_1.weight", "Stable Diffusion 2"},
    {"control_model.input_blocks.0.0.weight", "a ControlNet"},
    {"double_blocks.0.img_attn.qkv.weight", "Flux"},
    {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "Flux"},
    {"model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight", "Stable Diffusion 3"},
};

// "12 of 248: a, b, c and 9 more".
std::string some_of(const std::vector<std::string>& names, size_t total) {
  constexpr size_t kShown = 8;
  std::string out = fmt::format("{} of {}: ", names.size(), total);
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i) out += (i > 0 ? ", " : "") + names[i];
  return out + (names.size() > kShown ? fmt::format(" and {} more", names.size() - kShown) : "");
}

// Every tensor that the network of `config` has, with its shape. Networks outside the table are taken as they are.
void check_network(const SingleFile::Network& n, const TensorMap& tensors, std::string_view where) {
  const std::string class_name = class_name_of(n.config);
  const auto kinds = model_kinds();
  const auto kind = std::find_if(kinds.begin(), kinds.end(), [&](const ModelKind& k) { return k.name == class_name; });
  if (kind == kinds.end()) return;
  const nn::BuildScope meta(at::kMeta);
  const auto module = kind->build(n.config);
  std::vector<std::string> missing, misshapen, extra;
  TensorMap expected = io::to_map(module->state());
  for (const auto& [name, t] : expected) {
    const auto found = tensors.find(name);
    if (found == tensors.end()) missing.push_back(name);
    else if (found->second.sizes() != t.sizes())
      misshapen.push_back(fmt::format("{} is {}, config.json makes it {}", name, fmt::join(found->second.sizes(), "x"), fmt::join(t.sizes(), "x")));
  }
  for (const auto& [name, t] : tensors)
    if (!expected.contains(name) && !name.ends_with(".position_ids")) extra.push_back(name);
  if (!missing.empty()) fail<DataError>("{}: {}: tensors are missing, {}", where, n.component, some_of(missing, expected.size()));
  if (!misshapen.empty()) fail<DataError>("{}: {}: config and tensors disagree on {}", where, n.component, some_of(misshapen, expected.size()));
  if (!extra.empty()) fail<DataError>("{}: {}: tensors that {} does not have, {}", where, n.component, class_name, some_of(extra, tensors.size()));
}

// Component names and paths come from an untrusted file: below the folder, at most two folders deep.
bool is_safe_path(const std::string& name) {
  if (name.empty() || name.size() > 200 || name.front() == '/' || std::count(name.begin(), name.end(), '/') > 2) return false;
  for (const std::string& part : split(name, '/')) {
    if (part.empty() || part.front() == '.') return false;
    for (const char c : part)
      if (!std::isalnum(static_cast<unsigned char>(c)) && c != '_' && c != '-' && c != '.') return false;
  }
  return true;
}

void read_metadata(SingleFile& out) {
  for (const auto& [key, text] : out.metadata) {
    if (!key.starts_with(kFileKey)) continue;
    const std::string path = key.substr(kFileKey.size());
    if (!is_embeddable(path))
      fail<DataError>("{}: metadata '{}' does not name a file of a model folder", out.path.string(), key);
    out.files[path] = text;
  }
}

Json parse_embedded(const SingleFile& file, const std::string& name) {
  const auto it = file.files.find(name);
  if (it == file.files.end()) return nullptr;
  Json json = Json::parse(it->second, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) fail<DataError>("{}: '{}' in the metadata is not a JSON object", file.path.string(), name);
  return json;
}

// A network's tensors as they stand in the file, before the layout is changed.
struct Raw {
  StabilityPlace place;
  TensorMap tensors;
};

// Parts the tensors among the places; what belongs to none goes to extra, own components to `own`.
std::vector<Raw> part_tensors(TensorMap all, SingleFile& out, std::map<std::string, TensorMap>& own) {
  std::vector<Raw> raws;
  std::vector<StabilityPlace> places(std::begin(kPlaces), std::end(kPlaces));
  for (const auto& [mark, place] : kBare)
    if (all.contains(std::string(mark))) places.push_back(place);
  for (auto& [name, t] : all) {
    if (name.starts_with(kOwnPrefix)) {
      const size_t dot = name.find('.', kOwnPrefix.size());
      const std::string component = name.substr(kOwnPrefix.size(), dot == name.npos ? dot : dot - kOwnPrefix.size());
      if (dot == name.npos || !is_safe_path(component)) fail<DataError>("{}: tensor '{}' names no component", out.path.string(), name);
      own[component][name.substr(dot + 1)] = t;
      continue;
    }
    const auto place = std::find_if(places.begin(), places.end(), [&](const StabilityPlace& p) { return name.starts_with(p.prefix); });
    // A bare network owns the names that no other place has, except those of the trainer.
    if (place == places.end() || (place->prefix.empty() && name.starts_with("model_ema."))) {
      out.extra[name] = t;
      continue;
    }
    auto raw = std::find_if(raws.begin(), raws.end(), [&](const Raw& r) { return r.place.component == place->component; });
    if (raw == raws.end()) raw = raws.insert(raws.end(), {*place, {}});
    if (raw->place.prefix != place->prefix)
      fail<DataError>("{}: {} is there twice, as '{}' and as '{}'", out.path.string(), place->component, raw->place.prefix, place->prefix);
    raw->tensors[name.substr(place->prefix.size())] = t;
  }
  return raws;
}

// ldm's LitEma keeps the parameters of the wrapper ("diffusion_model.<name>") by their names without dots.
void take_ema(Raw& raw, SingleFile& out) {
  std::vector<std::string> missing;
  for (auto& [name, t] : raw.tensors) {
    std::string flat = "diffusion_model." + name;
    std::erase(flat, '.');
    const auto it = out.extra.find("model_ema." + flat);
    if (it == out.extra.end()) missing.push_back(name);
    else if (it->second.sizes() != t.sizes()) fail<DataError>("{}: the moving average of '{}' has another shape", out.path.string(), name);
    else t = it->second;
  }
  if (!missing.empty())
    fail<DataError>("{}: no moving average (model_ema.) of {}", out.path.string(), some_of(missing, raw.tensors.size()));
  std::erase_if(out.extra, [](const auto& e) { return e.first.starts_with("model_ema."); });
}

SingleFile::Network converted(const Raw& raw, SingleFile& out) {
  const std::string where = fmt::format("{} ({})", out.path.string(), raw.place.component);
  SingleFile::Network n{.component = std::string(raw.place.component), .prefix = std::string(raw.place.prefix), .tensors = {}, .older_names = {}, .config = nullptr};
  TensorMap rest;
  n.tensors = to_diffusers(raw.place.part, raw.tensors, rest, where);
  std::vector<std::string> unknown;
  for (auto& [name, t] : rest) {
    if (raw.place.part == StabilityPart::open_clip_text || name.starts_with("loss.")) out.extra[n.prefix + name] = t;
    else unknown.push_back(name);
  }
  if (!unknown.empty()) fail<DataError>("{}: tensors that belong to no block of the network, {}", where, some_of(unknown, raw.tensors.size()));
  return n;
}

// Which release a file without configs is: its UNet says, else its text encoders, else its autoencoder.
const StabilityRelease& find_release(const SingleFile& file) {
  const std::string where = file.path.string();
  if (const auto* unet = file.find("unet")) return release_of_unet(unet->tensors, where);
  const bool first = file.find("text_encoder") != nullptr, second = file.find("text_encoder_2") != nullptr;
  if (first || second) return stability_release(!second ? "sd-1" : first ? "sdxl-base" : "sdxl-refiner");
  log::warn("{}: an autoencoder alone: taken for SDXL's (scaling_factor {}), whose shapes those of Stable Diffusion 1.x equal", where,
            stability_release("sdxl-base").scaling_factor);
  return stability_release("sdxl-base");
}

Json told_config(const SingleFile& file, const SingleFile::Network& n) {
  const std::string where = fmt::format("{} ({})", file.path.string(), n.component);
  if (n.component == "unet") return unet_config_of(n.tensors, *file.release, where);
  if (n.component == "vae") return vae_config_of(n.tensors, *file.release, where);
  return text_config_of(n.tensors, n.component == "text_encoder_2", where);
}

void read_prediction(SingleFile& out, bool v_mark, bool terminal_mark) {
  const auto spec = out.metadata.find("modelspec.prediction_type");
  const std::string said = spec == out.metadata.end() ? "" : to_lower(spec->second);
  out.v_prediction = v_mark || said == "v" || said == "v_prediction";
  out.zero_terminal_snr = terminal_mark;
  const Json scheduler = parse_embedded(out, "scheduler/scheduler_config.json");
  if (scheduler.is_null()) return;
  const SchedulerMarks configured = scheduler_marks(scheduler, out.path.string() + ": scheduler/scheduler_config.json in the metadata");
  if (v_mark && !configured.v_prediction())
    fail<DataError>("{}: the file is marked v_pred, the scheduler in its metadata says prediction_type {}", out.path.string(), configured.prediction);
  out.v_prediction = configured.v_prediction(), out.zero_terminal_snr = configured.zero_terminal_snr;
}

// The names that the tensors had in the folder the file was made from.
void read_older_names(SingleFile& out) {
  const auto it = out.metadata.find(std::string(kNamesKey));
  if (it == out.metadata.end()) return;
  const Json names = Json::parse(it->second, nullptr, /*allow_exceptions=*/false);
  if (!names.is_object()) fail<DataError>("{}: '{}' in the metadata is not a JSON object", out.path.string(), kNamesKey);
  for (SingleFile::Network& n : out.networks)
    if (const auto list = names.find(n.component); list != names.end() && list->is_object())
      for (const auto& [today, older] : list->items())
        if (older.is_string()) n.older_names[today] = older.get<std::string>();
}

void refuse_others(const io::Safetensors& file, const fs::path& path) {
  for (const auto& [mark, what] : kRefused)
    if (file.contains(mark)) fail<DataError>("{}: a checkpoint of {}, which is not supported (SDXL base and refiner, Stable Diffusion 1.x are)", path.string(), what);
}

[[noreturn]] void no_known_layout(const std::vector<std::string>& names, const fs::path& path) {
  const bool diffusers = std::any_of(names.begin(), names.end(), [](const std::string& n) { return n.starts_with("down_blocks.") || n.starts_with("decoder.up_blocks."); });
  if (diffusers) fail<DataError>("{}: the weights of one component of a diffusers folder: name the folder with model_index.json", path.string());
  std::string some;
  for (size_t i = 0; i < std::min<size_t>(3, names.size()); ++i) some += (i > 0 ? ", " : "") + names[i];
  fail<DataError>("{}: {} tensors of no known layout (they begin {}); expected model.diffusion_model., first_stage_model., conditioner. or cond_stage_model.",
                  path.string(), names.size(), some.empty() ? "with nothing" : some);
}

}  // namespace

bool is_embeddable(const std::string& path) { return is_safe_path(path) && (path.ends_with(".json") || path.ends_with(".txt")); }

SchedulerMarks scheduler_marks(const Json& scheduler, std::string_view where) {
  const JsonDataFields fields(scheduler, where);
  SchedulerMarks out;
  fields.get("prediction_type", out.prediction), fields.get("rescale_betas_zero_snr", out.zero_terminal_snr);
  return out;
}

const SingleFile::Network* SingleFile::find(std::string_view component) const {
  for (const Network& n : networks)
    if (n.component == component) return &n;
  return nullptr;
}

SingleFile read_single_file(const fs::path& path, const SingleFileReading& reading) {
  const io::Safetensors file(path);
  refuse_others(file, path);
  SingleFile out;
  out.path = path, out.metadata = file.metadata();
  read_metadata(out);
  std::map<std::string, TensorMap> own;
  std::vector<Raw> raws = part_tensors(file.all(), out, own);
  for (Raw& raw : raws) {
    if (reading.ema && raw.place.part == StabilityPart::unet) take_ema(raw, out);
    out.networks.push_back(converted(raw, out));
  }
  for (auto& [component, tensors] : own) {
    const auto known = std::find_if(out.networks.begin(), out.networks.end(), [&](const auto& n) { return n.component == component; });
    if (known != out.networks.end()) known->tensors.merge(tensors);  // position_ids of an encoder, for which there is no place
    else out.networks.push_back({.component = component, .prefix = fmt::format("{}{}.", kOwnPrefix, component), .tensors = std::move(tensors), .older_names = {}, .config = nullptr});
  }
  if (out.networks.empty()) no_known_layout(file.names(), path);
  for (SingleFile::Network& n : out.networks) {
    n.config = parse_embedded(out, n.component + "/config.json");
    if (n.config.is_null() && !n.prefix.starts_with(kOwnPrefix)) {
      if (out.release == nullptr) out.release = &find_release(out);
      n.config = told_config(out, n);
    }
    check_network(n, n.tensors, path.string());
  }
  read_older_names(out);
  read_prediction(out, file.contains("v_pred"), file.contains("ztsnr"));
  return out;
}

}  // namespace fewstep::models
