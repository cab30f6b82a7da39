#include "tools/export_lora.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/json.h"
#include "src/base/log.h"
#include "src/io/safetensors.h"
#include "src/models/lora_files.h"
#include "src/models/model.h"
#include "src/models/model_folder.h"
#include "src/models/stability_configs.h"
#include "src/models/weight_files.h"
#include "tools/distilled_model.h"
#include "tools/lora_card.h"

namespace fewstep {
namespace fs = std::filesystem;
namespace {

struct LoraSource {
  std::string component;    // "unet"
  Json network, index, adapter, scheduler;  // config.json, model_index.json, adapter_config.json, scheduler_config.json
  models::LoraNames names;
  models::LoraLayers layers;
  std::optional<DistilledModel> distilled;
  int64_t step = 0;  // of the run's checkpoint; 0: not known
};

LoraSource read_source(const fs::path& model) {
  const models::ModelFolder folder = models::read_model_folder(model);
  const models::ModelComponent* network = folder.find("unet") ? folder.find("unet") : folder.find("transformer");
  if (!network) fail<ConfigError>("{}: neither a unet nor a transformer in it: there are no names for LoRAs of others", model.string());
  const fs::path adapter = model / "adapter";
  std::optional<DistilledModel> distilled = read_distilled_model(model);
  if (!fs::exists(adapter / "adapter_model.safetensors"))
    fail<ConfigError>("{}: the model has no adapter (adapter/adapter_model.safetensors), its weights were trained in full: export it with --format diffusers or "
                      "single-file, or train with trainer.lora.rank above 0",
                      model.string());
  const auto json_of = [](const fs::path& path) { return fs::exists(path) ? read_json(path) : Json::object(); };
  models::LoraNames names(network->name, models::layers_with_weights(io::Safetensors(models::find_weights(network->folder)).names()), network->folder.string());
  models::LoraLayers layers = models::read_lora(adapter, names).layers;
  const Json state = json_of(model.parent_path() / "state.json");
  return {.component = network->name, .network = json_of(network->folder / "config.json"), .index = folder.index,
          .adapter = json_of(adapter / "adapter_config.json"), .scheduler = json_of(model / "scheduler" / "scheduler_config.json"),
          .names = std::move(names), .layers = std::move(layers), .distilled = std::move(distilled),
          .step = state.is_object() ? state.value("step", int64_t{0}) : 0};
}

const models::LoraLayer& first_layer(const LoraSource& s) { return s.layers.begin()->second; }

std::string base_of(const LoraSource& s) {
  const std::string trained_on = s.adapter.value("base_model_name_or_path", "");
  return s.distilled && !s.distilled->teacher.empty() ? s.distilled->teacher : trained_on;
}

const models::StabilityRelease* release_of(const Json& network) {
  const auto number = [&](const char* key) { const auto it = network.find(key); return it != network.end() && it->is_number_integer() ? it->get<int64_t>() : 0; };
  for (const models::StabilityRelease& r : models::stability_releases())
    if (r.context_width == number("cross_attention_dim") && r.vector_width == number("projection_class_embeddings_input_dim")) return &r;
  return nullptr;
}

// modelspec.org 1.0.1; no date, so that equal models make equal files.
void add_lora_spec(const LoraSource& s, models::LoraForm form, const std::string& data_hash, std::map<std::string, std::string>& out) {
  const models::StabilityRelease* release = s.component == "unet" ? release_of(s.network) : nullptr;
  const std::string architecture = release ? std::string(release->architecture) : "fewstep/" + models::class_name_of(s.network);
  out["modelspec.sai_model_spec"] = "1.0.1";
  out["modelspec.architecture"] = architecture + "/lora";
  out["modelspec.implementation"] = form == models::LoraForm::kohya_sgm ? "https://github.com/Stability-AI/generative-models" : "diffusers";
  const std::string base = base_of(s).empty() ? architecture : base_of(s);
  out["modelspec.title"] = s.distilled ? fmt::format("{}-step {} student of {}", s.distilled->steps(), s.distilled->method, base) : "LoRA for " + base;
  const bool flow = models::class_name_of(s.scheduler).starts_with("FlowMatch");
  const std::string prediction = s.scheduler.value("prediction_type", "epsilon");
  out["modelspec.prediction_type"] = flow ? "flow" : prediction == "v_prediction" ? "v" : prediction;
  if (release) out["modelspec.resolution"] = fmt::format("{0}x{0}", release->side);
  out["modelspec.hash_sha256"] = "0x" + data_hash;
  if (s.distilled)
    out["modelspec.usage_hint"] = fmt::format("{} steps, guidance {:g}, sampler {}", s.distilled->steps(), s.distilled->guidance, s.distilled->sampler);
}

// What sd-scripts and the webui look for.
std::map<std::string, std::string> training_keys(const LoraSource& s) {
  std::map<std::string, std::string> out = {{"ss_network_module", "networks.lora"},
                                            {"ss_network_dim", std::to_string(first_layer(s).rank())},
                                            {"ss_network_alpha", fmt::format("{}", first_layer(s).alpha)}};
  if (s.step > 0) out["ss_steps"] = std::to_string(s.step);
  const models::StabilityRelease* release = s.component == "unet" ? release_of(s.network) : nullptr;
  if (release && release->name == "sdxl-base") out["ss_base_model_version"] = "sdxl_base_v1-0";
  if (release && release->vector_width == 0) out["ss_base_model_version"] = "sd_v1";
  return out;
}

void write_lora(const LoraSource& s, const fs::path& file, const LoraExport& options) {
  const bool kohya = options.form != models::LoraForm::peft;
  if (options.form == models::LoraForm::kohya_sgm && !s.names.sgm_blocks_are_clear_to_diffusers())
    log::warn("--kohya-names sgm: diffusers' reader takes some blocks of this network for others (ComfyUI and fewstep do not): for diffusers, use "
              "--kohya-names diffusers");
  const TensorMap tensors = models::lora_tensors(s.layers, s.names, options.form, options.dtype);
  const std::string data_hash = io::safetensors_data_sha256(tensors);
  std::map<std::string, std::string> metadata;
  if (kohya) {
    metadata = training_keys(s);
    io::write_safetensors(file, tensors, metadata);  // whose hash sd-scripts notes
    metadata["sshs_legacy_hash"] = models::lora_legacy_hash(file);
    metadata["sshs_model_hash"] = data_hash;
  } else {
    // Beside alphas (kohya) diffusers refuses it.
    metadata["lora_adapter_metadata"] = models::lora_adapter_metadata(s.layers, s.component);
  }
  metadata["format"] = "pt";
  add_lora_spec(s, options.form, data_hash, metadata);
  if (s.distilled) metadata.merge(s.distilled->metadata());
  for (const auto& [key, value] : options.metadata) metadata[key] = value;
  io::write_safetensors(file, tensors, metadata);
}

std::string dtype_text(const LoraSource& s, const LoraExport& options) {
  switch (options.dtype.value_or(first_layer(s).a.scalar_type())) {
    case at::kHalf: return "float16";
    case at::kBFloat16: return "bfloat16";
    case at::kDouble: return "float64";
    default: return "float32";
  }
}

}  // namespace

void export_lora(const fs::path& model, const fs::path& out, const LoraExport& options) {
  const LoraSource s = read_source(model);
  const std::map<models::LoraForm, const char*> forms = {
      {models::LoraForm::peft, "peft"}, {models::LoraForm::kohya, "kohya"}, {models::LoraForm::kohya_sgm, "kohya (sgm)"}};
  if (out.extension() == ".safetensors") {
    if (!options.results.empty()) fail<ConfigError>("--results: is for the model card of a folder; --out {} is one file", out.filename().string());
    write_lora(s, out, options);
  } else {
    make_directories(out / "scheduler");
    write_lora(s, out / models::kLoraWeights, options);
    write_json(out / "scheduler" / "scheduler_config.json", s.scheduler);
    write_text_atomic(out / "README.md", lora_card({.base = base_of(s), .pipeline = s.index.value("_class_name", ""), .scheduler = models::class_name_of(s.scheduler),
                                                    .component = s.component, .form = forms.at(options.form), .dtype = dtype_text(s, options),
                                                    .layers = static_cast<int64_t>(s.layers.size()), .rank = first_layer(s).rank(), .alpha = first_layer(s).alpha,
                                                    .distilled = s.distilled, .folder = out, .results = options.results}));
  }
  log::info("{} layers of rank {} as {} names{}", s.layers.size(), first_layer(s).rank(), forms.at(options.form),
            s.distilled ? fmt::format("; {} steps, its scheduler gives the trained sigmas", s.distilled->steps()) : "");
}

}  // namespace fewstep
