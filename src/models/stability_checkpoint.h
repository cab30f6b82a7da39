// Checkpoints in one file, as Stability AI, ComfyUI, kohya and the webui exchange them, and model folders.
//
//   prefix in the file                                   component
//   model.diffusion_model. | none                        unet
//   first_stage_model. | vae. | none                     vae
//   conditioner.embedders.0.transformer.                 text_encoder     (SDXL base: CLIP ViT-L)
//   cond_stage_model.transformer.                        text_encoder     (Stable Diffusion 1.x)
//   conditioner.embedders.1.model.                       text_encoder_2   (SDXL base: open_clip ViT-bigG)
//   conditioner.embedders.0.model.                       text_encoder_2   (refiner)
//   fewstep.<component>.                                 any other network of ours, by its own names
// Tensors of none of these are kept beside the folder's components (kExtraFile) and go back into a file made from it.
// Files made here hold the small files of the folder (config.json, tokenizers, model_index.json) in their metadata, as
// "fewstep.file.<path>": the folder comes back as it was.
#pragma once
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/json.h"
#include "src/models/stability_configs.h"
#include "src/models/stability_layout.h"
#include "src/tensor/tensor.h"

namespace fewstep::models {

inline constexpr const char* kExtraFile = "single_file_extra.safetensors";

struct SingleFile {
  struct Network {
    std::string component;  // folder: "unet"
    std::string prefix;     // in the file
    TensorMap tensors;      // diffusers' names; views of the file
    std::map<std::string, std::string> older_names;  // of the folder that the file was made from, by today's; mostly none
    Json config;            // config.json, from the file's metadata or told from the tensors; null: not known
  };
  std::filesystem::path path;
  const StabilityRelease* release = nullptr;  // nullptr: a file of ours with another pipeline
  std::vector<Network> networks;              // unet, vae, text_encoder, text_encoder_2, others
  TensorMap extra;                            // by their names in the file
  std::map<std::string, std::string> files;   // of the metadata: path in the folder -> contents
  std::map<std::string, std::string> metadata;
  bool v_prediction = false, zero_terminal_snr = false;
  const Network* find(std::string_view component) const;
};
struct SingleFileReading {
  bool ema = false;  // the UNet's moving average ("model_ema.", names without dots) instead of its weights
};
// Opens without reading weights. DataError / ConfigError: truncated, no known layout, a network that is not supported (Stable
// Diffusion 2, inpainting, Playground 2.5), tensors missing (named, with counts) or of other shapes than the config says.
SingleFile read_single_file(const std::filesystem::path& path, const SingleFileReading& reading = {});
// A model folder from it (`folder` is new). Tokenizers are not in files of others: they are taken from the folders tokenizer and
// tokenizer_2 beside the file, or from $FEWSTEP_CLIP_TOKENIZER (vocab.json and merges.txt); a warning when there are none.
void unpack_single_file(const SingleFile& file, const std::filesystem::path& folder);
// Puts tokenizers into a model folder that lacks them; false when they are needed and there are none.
bool add_tokenizers(const std::filesystem::path& beside, const std::filesystem::path& folder);

// What scheduler_config.json says of the prediction. DataError: a value of another type.
struct SchedulerMarks {
  std::string prediction = "epsilon";  // prediction_type
  bool zero_terminal_snr = false;      // rescale_betas_zero_snr
  bool v_prediction() const { return prediction == "v_prediction"; }
};
SchedulerMarks scheduler_marks(const Json& scheduler, std::string_view where);

// May stand in a file's metadata as the path of a file of the folder: relative, no "..", plain characters, .json or .txt.
bool is_embeddable(const std::string& path);
inline constexpr std::string_view kOwnPrefix = "fewstep.", kFileKey = "fewstep.file.", kNamesKey = "fewstep.names";

struct SingleFileOptions {
  std::optional<at::ScalarType> dtype = {};     // of floating-point weights; nothing: as they are
  std::string variant = {};                     // of the folder's weights ("fp16")
  std::map<std::string, std::string> metadata = {};  // added to modelspec.*; a key given here replaces ours
};
// config.json with the "torch_dtype" or "dtype" of transformers brought to `dtype`, where there is one.
Json with_dtype(Json config, at::ScalarType dtype);
// `folder` holds model_index.json. Deterministic. ConfigError for pipelines without a UNet.
void write_single_file(const std::filesystem::path& folder, const std::filesystem::path& out, const SingleFileOptions& options = {});

}  // namespace fewstep::models
