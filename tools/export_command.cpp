// fewstep export RUN_OR_MODEL --format diffusers|single-file|lora-peft|lora-kohya --out PATH
#include <CLI/CLI.hpp>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <unistd.h>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/log.h"
#include "src/base/table.h"
#include "src/base/text.h"
#include "src/io/safetensors.h"
#include "src/models/lora_files.h"
#include "src/models/model.h"
#include "src/models/model_folder.h"
#include "src/models/stability_checkpoint.h"
#include "src/models/weight_files.h"
#include "src/tensor/ops.h"
#include "tools/commands.h"
#include "tools/distilled_model.h"
#include "tools/export_lora.h"

namespace fewstep {
namespace {
namespace fs = std::filesystem;

struct ExportArguments {
  std::string source, format, out, dtype, variant, from_variant, max_shard_size, kohya_names, results;
  std::vector<std::string> metadata;
  bool ema = false;
};

struct DtypeWord {
  std::string_view name;
  at::ScalarType type;
};
constexpr DtypeWord kDtypes[] = {{"float32", at::kFloat}, {"float16", at::kHalf}, {"bfloat16", at::kBFloat16}};

std::optional<at::ScalarType> dtype_of(const ExportArguments& a) {
  if (a.dtype.empty()) return std::nullopt;
  return find_entry(std::span<const DtypeWord>(kDtypes), a.dtype, "--dtype").type;
}

// "5GB", "500MiB", "1000000": decimal as diffusers counts, binary with an i. 0 and "": no limit.
uint64_t bytes_of(const std::string& text) {
  if (text.empty()) return 0;
  size_t end = 0;
  double value = -1;
  try {
    value = std::stod(text, &end);
  } catch (const std::exception&) {
  }
  constexpr std::pair<std::string_view, double> kUnits[] = {{"", 1}, {"b", 1}, {"kb", 1e3}, {"mb", 1e6}, {"gb", 1e9},
                                                            {"kib", 1024.0}, {"mib", 1048576.0}, {"gib", 1073741824.0}};
  const std::string unit = to_lower(trim(std::string_view(text).substr(end)));
  for (const auto& [name, factor] : kUnits)
    if (name == unit && value >= 0 && value * factor < 9e18) return static_cast<uint64_t>(value * factor);
  fail<ConfigError>("--max-shard-size: '{}' is not a size: expected a number with B, KB, MB, GB, KiB, MiB or GiB", text);
}

std::map<std::string, std::string> metadata_of(const ExportArguments& a) {
  std::map<std::string, std::string> out;
  for (const std::string& item : a.metadata) {
    const size_t equals = item.find('=');
    if (equals == item.npos || equals == 0) fail<ConfigError>("--metadata: '{}' is not KEY=VALUE (modelspec.title=My model)", item);
    out[item.substr(0, equals)] = item.substr(equals + 1);
  }
  return out;
}

// diffusers finds its classes by (library, class); our own class name would be none.
Json diffusers_index(const models::ModelFolder& model) {
  Json index = model.index;
  if (models::class_name_of(index) != "FewstepDiffusionPipeline") return index;
  const bool xl = model.find("text_encoder") && model.find("text_encoder_2") && model.find("vae") && model.find("unet") && model.find("scheduler");
  if (!xl) {
    log::warn("{}: no pipeline of diffusers has these components; each one of diffusers' and transformers' classes loads by itself (from_pretrained with subfolder=)",
              model.path.string());
    return index;
  }
  index["_class_name"] = "StableDiffusionXLPipeline";
  for (const char* own : {"conditioner", "latent_space"}) index.erase(own);
  if (!index.contains("force_zeros_for_empty_prompt")) index["force_zeros_for_empty_prompt"] = true;
  return index;
}

// A component whose weights are written anew, in another dtype, in shards or under a variant's name; its other files as they are.
void rewrite_component(const fs::path& from, const fs::path& to, const ExportArguments& a, const models::WeightOptions& options) {
  const std::vector<fs::path> weights = models::weight_files(from, a.from_variant);
  for (const fs::path& file : models::files_below(from)) {
    const std::string name = file.generic_string();
    const bool is_weight = name.ends_with(".safetensors") || name.ends_with(".bin") || name.find(".safetensors.index.") != name.npos;
    if (is_weight && !file.has_parent_path()) continue;
    if (name == "config.json" && options.dtype) {
      make_directories(to);
      write_json(to / name, models::with_dtype(read_json(from / name), *options.dtype));
    } else {
      models::place_file(from / file, to / file);
    }
  }
  const Json config = fs::exists(from / "config.json") ? read_json(from / "config.json") : Json();
  models::write_weights(to, models::weight_stem(config), io::Safetensors(weights.front()).all(), options);
}

// Unchanged components are hard links where the file system can (frozen ones of a run are so already), else copies.
void export_diffusers(const fs::path& model_path, const fs::path& out, const ExportArguments& a) {
  const models::ModelFolder model = models::read_model_folder(model_path);
  const models::WeightOptions options{.dtype = dtype_of(a), .max_shard_bytes = bytes_of(a.max_shard_size), .variant = a.variant};
  const bool rewrite = options.dtype || options.max_shard_bytes > 0 || !options.variant.empty() || !a.from_variant.empty();
  if (!a.metadata.empty()) fail<ConfigError>("--metadata is for --format single-file, lora-peft and lora-kohya");
  const Json index = diffusers_index(model);
  if (index == model.index) models::place_file(model_path / "model_index.json", out / "model_index.json");
  else write_json(out / "model_index.json", index);
  for (const models::ModelComponent& c : model.components) {
    if (rewrite && models::has_weights(c.folder)) {
      rewrite_component(c.folder, out / c.name, a, options);
      continue;
    }
    for (const fs::path& file : models::files_below(c.folder)) models::place_file(c.folder / file, out / c.name / file);
  }
  for (const char* beside : {models::kExtraFile, models::kDistillationFile})
    if (fs::exists(model_path / beside)) models::place_file(model_path / beside, out / beside);
}

void export_single_file(const fs::path& model_path, const fs::path& out, const ExportArguments& a) {
  if (!a.max_shard_size.empty() || !a.variant.empty()) fail<ConfigError>("--max-shard-size and --variant are for --format diffusers");
  if (out.extension() != ".safetensors") fail<ConfigError>("--out {}: a single file is named *.safetensors", out.string());
  models::write_single_file(model_path, out, {.dtype = dtype_of(a), .variant = a.from_variant, .metadata = metadata_of(a)});
}

void write_adapter(const fs::path& model_path, const fs::path& out, const ExportArguments& a, models::LoraForm form) {
  for (const auto& [name, given] : {std::pair{"--variant", !a.variant.empty()}, {"--from-variant", !a.from_variant.empty()},
                                    {"--max-shard-size", !a.max_shard_size.empty()}, {"--ema", a.ema}})
    if (given) fail<ConfigError>("{}: means nothing to --format {}", name, a.format);
  export_lora(model_path, out, {.form = form, .dtype = dtype_of(a), .metadata = metadata_of(a), .results = a.results});
}
void export_peft(const fs::path& model_path, const fs::path& out, const ExportArguments& a) {
  write_adapter(model_path, out, a, models::LoraForm::peft);
}
void export_kohya(const fs::path& model_path, const fs::path& out, const ExportArguments& a) {
  struct Spelling {
    std::string_view name;
    models::LoraForm form;
  };
  static constexpr Spelling kSpellings[] = {{"diffusers", models::LoraForm::kohya}, {"sgm", models::LoraForm::kohya_sgm}};
  write_adapter(model_path, out, a, find_entry(std::span<const Spelling>(kSpellings), a.kohya_names.empty() ? "diffusers" : a.kohya_names, "--kohya-names").form);
}

enum class Makes { folder, file, either };  // either: a file where --out ends in .safetensors
struct ExportFormat {
  std::string_view name;
  Makes makes;
  void (*write)(const fs::path& model, const fs::path& out, const ExportArguments& a);
};
constexpr ExportFormat kFormats[] = {{"diffusers", Makes::folder, export_diffusers},
                                     {"single-file", Makes::file, export_single_file},
                                     {"lora-peft", Makes::either, export_peft},
                                     {"lora-kohya", Makes::either, export_kohya}};

void check_lora_arguments(const ExportArguments& a, const ExportFormat& format) {
  if (!a.kohya_names.empty() && format.name != "lora-kohya") fail<ConfigError>("--kohya-names: is for --format lora-kohya, not {}", format.name);
  if (!a.results.empty() && format.makes != Makes::either) fail<ConfigError>("--results: is for the model card of --format lora-peft and lora-kohya, not {}", format.name);
  if (!a.results.empty() && !fs::exists(a.results)) fail<DataError>("--results {}: no such file", a.results);
}

// The source as a model folder. With --ema a single file is unpacked anew, into `scratch`.
fs::path source_folder(const ExportArguments& a, const fs::path& scratch) {
  if (!a.ema) return models::as_model_folder(a.source);
  if (!fs::is_regular_file(a.source)) fail<ConfigError>("--ema: {} is not a single file (runs save their moving average as the model)", a.source);
  models::unpack_single_file(models::read_single_file(a.source, {.ema = true}), scratch);
  return scratch;
}

// Written beside its final place and renamed, whole or not at all.
void export_model(const ExportArguments& a) {
  const ExportFormat& format = find_entry(std::span<const ExportFormat>(kFormats), a.format, "--format");
  const fs::path out = fs::path(a.out).lexically_normal(), parent = out.has_parent_path() ? out.parent_path() : fs::path(".");
  std::error_code code;
  check_lora_arguments(a, format);
  const bool is_folder = format.makes == Makes::folder || (format.makes == Makes::either && out.extension() != ".safetensors");
  if (fs::is_directory(out, code) && (!is_folder || !fs::is_empty(out, code)))
    fail<ConfigError>("--out {}: a folder{}", out.string(), is_folder ? " with files in it: remove it or name another one" : ", a file is made");
  if (!fs::is_directory(out, code) && fs::exists(out, code) && is_folder) fail<ConfigError>("--out {}: a file, a folder is made", out.string());
  make_directories(parent);
  std::string pattern = (parent / ".export-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) fail<DataError>("{}: cannot be written to", parent.string());
  const fs::path scratch = pattern;
  try {
    const fs::path model = source_folder(a, scratch / "unpacked"), result = scratch / out.filename();
    read_distilled_model(model);  // ConfigError: a scheduler that does not give the levels the student was trained at
    if (is_folder) make_directories(result);
    format.write(model, result, a);
    fs::rename(result, out);
    log::info("{}: {} of {}", out.string(), format.name, model.string());
  } catch (...) {
    fs::remove_all(scratch, code);
    throw;
  }
  fs::remove_all(scratch, code);
}

}  // namespace

void add_export_command(CLI::App& app) {
  auto* command = app.add_subcommand("export", "Write a model as a diffusers folder or as one file for ComfyUI, the webui and others, or its adapter as a LoRA");
  auto a = std::make_shared<ExportArguments>();
  command->add_option("MODEL", a->source, "run folder (its latest checkpoint), model folder, or a checkpoint in a single file")->required();
  command->add_option("--format", a->format, "diffusers, single-file, lora-peft, lora-kohya")->required();
  command->add_option("--out", a->out, "new folder, or file *.safetensors; for a LoRA either: the folder has a scheduler and a model card, too")->required();
  command->add_option("--dtype", a->dtype, "of the weights: float32, float16, bfloat16; default: as they are");
  command->add_option("--variant", a->variant, "diffusers: word in the weight files' names, fp16");
  command->add_option("--from-variant", a->from_variant, "take this variant of the source's weights");
  command->add_option("--max-shard-size", a->max_shard_size, "diffusers: largest weight file, 5GB; default: one file");
  command->add_option("--metadata", a->metadata, "single-file, lora-*: KEY=VALUE into the file, modelspec.title=...; may be given again");
  command->add_flag("--ema", a->ema, "of a single file that holds them: the moving averages");
  command->add_option("--kohya-names", a->kohya_names, "lora-kohya: blocks as diffusers numbers them (default), or as sgm (sd-scripts)");
  command->add_option("--results", a->results, "lora-*, folder: results.json of eval, for the model card");
  command->footer("Examples:\n"
                  "  fewstep export runs/sdxl --format single-file --out sdxl.safetensors --dtype float16\n"
                  "  fewstep export sd_xl_base_1.0.safetensors --format diffusers --out sdxl-base --dtype float16 --variant fp16\n"
                  "  fewstep export runs/dmd2 --format lora-peft --out dmd2-lora --results runs/dmd2_eval/results.json\n"
                  "      dmd2-lora/pytorch_lora_weights.safetensors, scheduler/scheduler_config.json, README.md (base, steps, sampler, metrics, hashes)\n"
                  "  fewstep export runs/dmd2 --format lora-kohya --kohya-names sgm --dtype bfloat16 --out dmd2.safetensors     one file, for ComfyUI\n"
                  "  fewstep sample sdxl-base lora=dmd2-lora --steps 4 --prompt \"a lighthouse\"                                  and back\n"
                  "lora-peft: names of diffusers, alpha = rank (alpha / rank is inside B). lora-kohya: lora_down, lora_up and .alpha for every layer. The\n"
                  "strength is the same in all. A student whose scheduler does not give the sigmas it was trained at is not exported.\n"
                  "Both directions keep every tensor's bytes unless --dtype is given; equal models make equal files.");
  command->callback([a] { export_model(*a); });
}

}  // namespace fewstep
