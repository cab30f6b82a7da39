// Single files out of model folders, and model folders out of single files.
#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/log.h"
#include "src/io/safetensors.h"
#include "src/models/autoencoder_kl.h"
#include "src/models/json_fields.h"
#include "src/models/model.h"
#include "src/models/model_folder.h"
#include "src/models/stability_checkpoint.h"
#include "src/models/weight_files.h"
#include "src/tensor/ops.h"

namespace fewstep::models {
namespace fs = std::filesystem;
namespace {

constexpr uint64_t kLargestEmbedded = 8 << 20;  // a tokenizer's vocabulary is about 1 MB

// --- Folder from file

Json pipeline_index(const SingleFile& file) {
  const StabilityRelease& r = *file.release;
  const auto entry = [&](const char* component, const char* library, const char* name) {
    return file.find(component) != nullptr ? Json({library, name}) : Json({nullptr, nullptr});
  };
  Json index;
  index["_class_name"] = r.pipeline;
  if (r.vector_width > 0) {
    index["force_zeros_for_empty_prompt"] = r.zero_null_text;
    if (r.name == "sdxl-refiner") index["requires_aesthetics_score"] = true;
  } else {
    index["feature_extractor"] = {nullptr, nullptr};
    index["requires_safety_checker"] = false;
    index["safety_checker"] = {nullptr, nullptr};
  }
  index["scheduler"] = {"diffusers", r.vector_width > 0 ? "EulerDiscreteScheduler" : "DDIMScheduler"};
  index["text_encoder"] = entry("text_encoder", "transformers", "CLIPTextModel");
  if (r.vector_width > 0) index["text_encoder_2"] = entry("text_encoder_2", "transformers", "CLIPTextModelWithProjection");
  index["tokenizer"] = entry("text_encoder", "transformers", "CLIPTokenizer");
  if (r.vector_width > 0) index["tokenizer_2"] = entry("text_encoder_2", "transformers", "CLIPTokenizer");
  index["unet"] = entry("unet", "diffusers", "UNet2DConditionModel");
  index["vae"] = entry("vae", "diffusers", "AutoencoderKL");
  return index;
}

TensorMap with_older_names(const SingleFile::Network& n) {
  TensorMap out;
  for (const auto& [name, t] : n.tensors) {
    const auto older = n.older_names.find(name);
    out[older == n.older_names.end() ? name : older->second] = t;
  }
  return out;
}

// Both towers of SDXL have one vocabulary; the second one pads with "!" (id 0).
void write_tokenizer(const fs::path& from, const fs::path& to, bool second, int64_t length) {
  for (const char* name : {"vocab.json", "merges.txt"}) place_file(from / name, to / name);
  write_json(to / "tokenizer_config.json", {{"add_prefix_space", false},
                                            {"bos_token", "<|startoftext|>"},
                                            {"do_lower_case", true},
                                            {"eos_token", "<|endoftext|>"},
                                            {"model_max_length", length},
                                            {"pad_token", second ? "!" : "<|endoftext|>"},
                                            {"tokenizer_class", "CLIPTokenizer"},
                                            {"unk_token", "<|endoftext|>"}});
}

bool holds_tokenizer(const fs::path& folder) { return fs::exists(folder / "vocab.json") && fs::exists(folder / "merges.txt"); }

// --- File from folder

// "" for a component that has no place in Stability's layout: it goes by its own names.
struct Placing {
  std::string prefix;
  std::optional<StabilityPart> part = {};
};
Placing placing_of(const std::string& component, const Json& config, bool first, bool second) {
  const std::string name = class_name_of(config);
  if (component == "unet" && name == "UNet2DConditionModel") return {"model.diffusion_model.", StabilityPart::unet};
  if (component == "vae" && name == "AutoencoderKL") return {"first_stage_model.", StabilityPart::vae};
  if (component == "text_encoder" && name.starts_with("CLIPTextModel"))
    return {second ? "conditioner.embedders.0.transformer." : "cond_stage_model.transformer.", StabilityPart::clip_text};
  if (component == "text_encoder_2" && name.starts_with("CLIPTextModel"))
    return {first ? "conditioner.embedders.1.model." : "conditioner.embedders.0.model.", StabilityPart::open_clip_text};
  return {fmt::format("{}{}.", kOwnPrefix, component)};
}

// Every folder below that has weights, by its path: "unet", "text_encoder".
std::vector<std::string> folders_with_weights(const fs::path& folder) {
  std::vector<std::string> out;
  std::error_code code;
  for (fs::recursive_directory_iterator it(folder, code), end; !code && it != end; it.increment(code))
    if (it->is_directory() && has_weights(it->path())) out.push_back(it->path().lexically_relative(folder).generic_string());
  if (code) fail<DataError>("{}: cannot be listed: {}", folder.string(), code.message());
  std::sort(out.begin(), out.end());
  return out;
}

struct FileContents {
  TensorMap tensors;
  Json older_names = Json::object();  // component -> today's name -> the folder's
  void add(const std::string& name, const Tensor& t, const fs::path& from) {
    if (!tensors.emplace(name, t).second) fail<DataError>("{}: '{}' would be in the file twice", from.string(), name);
  }
};

void add_network(const fs::path& folder, const std::string& component, const Placing& placing, const std::string& variant, FileContents& out) {
  const fs::path from = folder / component;
  const TensorMap tensors = io::Safetensors(find_weights(from, variant)).all();
  if (!placing.part) {
    for (const auto& [name, t] : tensors) out.add(placing.prefix + name, t, from);
    return;
  }
  for (const auto& [name, t] : tensors)
    if (const std::string today = modern_name(*placing.part, name); today != name) out.older_names[component][today] = name;
  TensorMap rest;
  for (const auto& [name, t] : to_stability(*placing.part, tensors, rest, from.string())) out.add(placing.prefix + name, t, from);
  for (const auto& [name, t] : rest) {
    if (!name.ends_with(".position_ids")) fail<DataError>("{}: tensor '{}' belongs to no block of the network", from.string(), name);
    out.add(fmt::format("{}{}.{}", kOwnPrefix, component, name), t, from);
  }
}

// The folder's other files, into the metadata: model_index.json and what the components have beside weights.
void embed_files(const ModelFolder& model, const std::vector<std::string>& networks, std::optional<at::ScalarType> dtype,
                 std::map<std::string, std::string>& metadata) {
  std::vector<fs::path> files = {"model_index.json"};
  for (const ModelComponent& c : model.components)
    for (const fs::path& file : files_below(c.folder)) files.push_back(fs::path(c.name) / file);
  for (const fs::path& file : files) {
    const std::string name = file.generic_string();
    if (name.ends_with(".safetensors") || name.ends_with(".bin") || name.find(".safetensors.index.") != name.npos) continue;
    if (!is_embeddable(name) || fs::file_size(model.path / file) > kLargestEmbedded) {
      log::warn("{}: no small .json or .txt file, left out of the single file", (model.path / file).string());
      continue;
    }
    std::string text = read_text(model.path / file);
    const std::string component = file.parent_path().generic_string();
    if (file.filename() == "config.json" && dtype && std::find(networks.begin(), networks.end(), component) != networks.end())
      text = with_dtype(read_json(model.path / file), *dtype).dump(2) + "\n";
    metadata[fmt::format("{}{}", kFileKey, name)] = std::move(text);
  }
}

// "v", "epsilon", "sample" or "flow".
std::string prediction_in_spec(const Json& scheduler, const SchedulerMarks& marks) {
  if (class_name_of(scheduler).starts_with("FlowMatch")) return "flow";
  return marks.v_prediction() ? "v" : marks.prediction;
}

// Pixels a latent cell covers along a side: of the VAE, or of pixels folded into channels.
int64_t pixels_of_latent(const std::filesystem::path& folder) {
  if (const fs::path own = folder / "latent_space" / "latent_space_config.json"; fs::exists(own))
    return JsonDataFields(read_json(own), own.string()).value("factor", int64_t{1});
  if (!fs::exists(folder / "vae" / "config.json")) return 8;
  const fs::path path = folder / "vae" / "config.json";
  const Json vae = read_json(path);
  return class_name_of(vae) == "AutoencoderKL" ? AutoencoderKlConfig::from_json(vae, path.string()).factor() : 8;
}

// modelspec.org 1.0.0; without a date, so that equal models make equal files.
void add_model_spec(const ModelFolder& model, const FileContents& contents, const SingleFileOptions& options, std::string prediction,
                    std::map<std::string, std::string>& metadata) {
  const Json unet = read_json(model.path / "unet" / "config.json");
  const auto number = [&](const Json& json, const char* key) { const auto it = json.find(key); return it != json.end() && it->is_number_integer() ? it->get<int64_t>() : 0; };
  const int64_t context = number(unet, "cross_attention_dim"), vector = number(unet, "projection_class_embeddings_input_dim");
  const auto releases = stability_releases();
  const auto release = std::find_if(releases.begin(), releases.end(), [&](const auto& r) { return r.context_width == context && r.vector_width == vector; });
  const bool known = release != releases.end();
  metadata["modelspec.sai_model_spec"] = "1.0.0";
  metadata["modelspec.architecture"] = known ? std::string(release->architecture) : "fewstep/" + class_name_of(model.index);
  metadata["modelspec.implementation"] = known && vector > 0 ? "https://github.com/Stability-AI/generative-models" : known ? "https://github.com/CompVis/stable-diffusion" : "fewstep";
  metadata["modelspec.title"] = fmt::format("{} by fewstep", known ? std::string(release->name) : class_name_of(model.index));
  metadata["modelspec.prediction_type"] = std::move(prediction);
  metadata["modelspec.hash_sha256"] = "0x" + io::safetensors_data_sha256(contents.tensors, options.dtype);
  if (known && release->name == "sdxl-refiner") metadata["modelspec.timestep_range"] = "0,200";
  if (const int64_t side = number(unet, "sample_size") * pixels_of_latent(model.path); side > 0) metadata["modelspec.resolution"] = fmt::format("{0}x{0}", side);
}

}  // namespace

bool add_tokenizers(const fs::path& beside, const fs::path& folder) {
  bool complete = true;
  const char* given = std::getenv("FEWSTEP_CLIP_TOKENIZER");
  for (const char* name : {"tokenizer", "tokenizer_2"}) {
    const bool second = std::string_view(name) == "tokenizer_2";
    const fs::path encoder = folder / (second ? "text_encoder_2" : "text_encoder"), target = folder / name;
    if (!fs::exists(encoder / "config.json") || fs::exists(target)) continue;
    const fs::path config = encoder / "config.json";
    const int64_t length = JsonFields(read_json(config), config.string()).value("max_position_embeddings", int64_t{77});
    std::vector<fs::path> sources = {beside / name, beside / "tokenizer"};
    if (given != nullptr && *given != '\0') sources.emplace_back(given);
    const auto found = std::find_if(sources.begin(), sources.end(), holds_tokenizer);
    if (found == sources.end()) complete = false;
    else write_tokenizer(*found, target, second, length);
  }
  return complete;
}

void unpack_single_file(const SingleFile& file, const fs::path& folder) {
  make_directories(folder);
  for (const auto& [name, text] : file.files) {
    make_directories((folder / name).parent_path());
    write_text_atomic(folder / name, text);
  }
  for (const SingleFile::Network& n : file.networks) {
    const fs::path target = folder / n.component;
    write_weights(target, weight_stem(n.config), with_older_names(n));
    if (!n.config.is_null() && !fs::exists(target / "config.json")) write_json(target / "config.json", n.config);
  }
  if (!file.extra.empty()) io::write_safetensors(folder / kExtraFile, file.extra, {{"format", "pt"}});
  if (fs::exists(folder / "model_index.json")) return;
  FEW_CHECK(file.release != nullptr, "{}: no release and no model_index.json", file.path.string());
  write_json(folder / "model_index.json", pipeline_index(file));
  make_directories(folder / "scheduler");
  write_json(folder / "scheduler" / "scheduler_config.json", scheduler_config_of(*file.release, file.v_prediction, file.zero_terminal_snr));
  if (!add_tokenizers(file.path.has_parent_path() ? file.path.parent_path() : fs::path("."), folder))
    log::warn("{}: a single file has no tokenizer; prompts need vocab.json and merges.txt of CLIP in a folder 'tokenizer' beside it, or in $FEWSTEP_CLIP_TOKENIZER",
              file.path.string());
}

Json with_dtype(Json config, at::ScalarType dtype) {
  const char* name = dtype == at::kHalf ? "float16" : dtype == at::kBFloat16 ? "bfloat16" : dtype == at::kDouble ? "float64" : "float32";
  for (const char* key : {"torch_dtype", "dtype"})
    if (config.is_object() && config.contains(key)) config[key] = name;
  return config;
}

void write_single_file(const fs::path& folder, const fs::path& out, const SingleFileOptions& options) {
  const ModelFolder model = read_model_folder(folder);
  const std::vector<std::string> networks = folders_with_weights(folder);
  const auto has = [&](const char* name) { return std::find(networks.begin(), networks.end(), name) != networks.end(); };
  if (!has("unet"))
    fail<ConfigError>("{}: a {} has no UNet; single files hold diffusion models (--format diffusers copies other folders)", folder.string(),
                      class_name_of(model.index).empty() ? "pipeline without class" : class_name_of(model.index));
  FileContents contents;
  for (const std::string& component : networks) {
    const fs::path config_path = folder / component / "config.json";
    const Json config = fs::exists(config_path) ? read_json(config_path) : Json();
    add_network(folder, component, placing_of(component, config, has("text_encoder"), has("text_encoder_2")), options.variant, contents);
  }
  if (fs::exists(folder / kExtraFile))
    for (const auto& [name, t] : io::Safetensors(folder / kExtraFile).all()) contents.add(name, t, folder / kExtraFile);
  const fs::path scheduler_path = folder / "scheduler" / "scheduler_config.json";
  const Json scheduler = fs::exists(scheduler_path) ? read_json(scheduler_path) : Json::object();
  const SchedulerMarks marks = scheduler_marks(scheduler, scheduler_path.string());
  // ComfyUI and the webui tell such models by these empty tensors.
  if (marks.v_prediction()) contents.tensors.try_emplace("v_pred", at::empty({0}));
  if (marks.v_prediction() && marks.zero_terminal_snr) contents.tensors.try_emplace("ztsnr", at::empty({0}));
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  embed_files(model, networks, options.dtype, metadata);
  if (!contents.older_names.empty()) metadata[std::string(kNamesKey)] = contents.older_names.dump();
  add_model_spec(model, contents, options, prediction_in_spec(scheduler, marks), metadata);
  for (const auto& [key, value] : options.metadata) metadata[key] = value;
  if (out.has_parent_path()) make_directories(out.parent_path());
  io::write_safetensors(out, contents.tensors, metadata, options.dtype);
}

}  // namespace fewstep::models
