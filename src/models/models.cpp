// The table of networks, and their folders.
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/table.h"
#include "src/io/safetensors.h"
#include "src/models/autoencoder_kl.h"
#include "src/models/clip.h"
#include "src/models/contrastive.h"
#include "src/models/conv_encoder.h"
#include "src/models/dinov2.h"
#include "src/models/feature_discriminator.h"
#include "src/models/fid_inception.h"
#include "src/models/label_embedding.h"
#include "src/models/llama.h"
#include "src/models/model.h"
#include "src/models/references.h"
#include "src/models/stability_layout.h"
#include "src/models/unet2d.h"
#include "src/models/vgg16.h"
#include "src/models/vq_model.h"
#include "src/models/weight_files.h"
#include "src/tensor/ops.h"

namespace fewstep::models {
namespace {

TensorMap adopt_autoencoder_kl(TensorMap tensors) { return modern_names(StabilityPart::vae, tensors); }

template <class Model, class Config>
std::unique_ptr<nn::Module> build(const Json& config) {
  return std::make_unique<Model>(Config::from_json(config, "config.json"));
}

constexpr ModelKind kModels[] = {
    {"LlamaForCausalLM", build<LlamaForCausalLM, LlamaConfig>, llama_reference},
    {"AutoencoderKL", build<AutoencoderKL, AutoencoderKlConfig>, autoencoder_kl_reference, adopt_autoencoder_kl},
    {"UNet2DConditionModel", build<UNet2DConditionModel, UNet2DConfig>, unet2d_reference},
    {"LabelEmbedding", build<LabelEmbedding, LabelEmbeddingConfig>, label_embedding_reference},
    {"VQModel", build<VQModel, VqConfig>, vq_reference},
    {"ConvEncoder", build<ConvEncoder, ConvEncoderConfig>, conv_encoder_reference},
    {"ContrastiveModel", build<ContrastiveModel, ContrastiveConfig>, contrastive_reference},
    {"CLIPModel", build<ClipModel, ClipConfig>, clip_reference},
    {"CLIPTextModel", build<ClipTextModel, ClipTextConfig>, clip_text_reference, adopt_clip_text},
    {"CLIPTextModelWithProjection", build<ClipTextModel, ClipTextConfig>, clip_text_reference, adopt_clip_text},
    {"Dinov2Model", build<Dinov2Model, Dinov2Config>, dinov2_reference},
    {"FeatureDiscriminator", build<FeatureDiscriminator, FeatureDiscriminatorConfig>, feature_discriminator_reference},
    {"pytorch_fid InceptionV3", build<FidInception, FidInceptionConfig>, fid_inception_reference, adopt_fid_inception},
    {"torchvision VGG16", build<Vgg16, Vgg16Config>, vgg16_reference},
};

// For configs without `architectures`.
constexpr std::pair<std::string_view, std::string_view> kModelTypes[] = {
    {"llama", "LlamaForCausalLM"}, {"clip", "CLIPModel"}, {"clip_text_model", "CLIPTextModel"}, {"dinov2", "Dinov2Model"}};

std::string text_at(const Json& config, const char* key) {
  const auto it = config.find(key);
  return it != config.end() && it->is_string() ? it->get<std::string>() : std::string();
}

}  // namespace

std::span<const ModelKind> model_kinds() { return kModels; }

std::string class_name_of(const Json& config) {
  if (!config.is_object()) return {};
  if (std::string name = text_at(config, "_class_name"); !name.empty()) return name;
  if (const auto it = config.find("architectures"); it != config.end() && it->is_array() && !it->empty() && it->front().is_string())
    return it->front().get<std::string>();
  if (const std::string type = text_at(config, "model_type"); !type.empty()) {
    for (const auto& [key, name] : kModelTypes)
      if (key == type) return std::string(name);
    return type;
  }
  return text_at(config, "architecture");
}

const ModelKind& find_model_kind(const Json& config, std::string_view where) {
  const std::string name = class_name_of(config);
  if (name.empty())
    fail<ConfigError>("{}: none of '_class_name', 'architectures', 'model_type', 'architecture' names the network", where);
  return find_entry(model_kinds(), name, fmt::format("network in {}", where));
}

std::unique_ptr<nn::Module> load_model(const std::filesystem::path& folder) {
  const std::filesystem::path config_path = folder / "config.json", weights = find_weights(folder);
  const Json config = read_json(config_path);
  const ModelKind& kind = find_model_kind(config, config_path.string());
  std::unique_ptr<nn::Module> module = kind.build(config);
  TensorMap tensors = io::Safetensors(weights).all();
  module->load(kind.adopt ? kind.adopt(std::move(tensors)) : tensors, weights.string());
  module->train(false);
  return module;
}

void save_model(const std::filesystem::path& folder, const nn::Module& module, const Json& config) {
  save_model(folder, io::to_map(module.state()), config);
}

void save_model(const std::filesystem::path& folder, const TensorMap& state, const Json& config) {
  make_directories(folder);
  write_json(folder / "config.json", config);
  write_weights(folder, weight_stem(config), state);
}

}  // namespace fewstep::models
