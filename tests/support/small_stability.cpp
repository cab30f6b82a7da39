#include "tests/support/small_stability.h"

#include <nlohmann/json.hpp>

#include "src/base/files.h"
#include "src/base/json.h"
#include "src/models/model.h"
#include "src/models/stability_configs.h"

namespace fewstep::support {
namespace fs = std::filesystem;
namespace {

template <class Network, class Config>
void write_small_network(const fs::path& folder, const Config& config, uint64_t seed) {
  Network network(config);
  network.initialise(seed);
  models::save_model(folder, network, config.to_json());
}

void write_small_tokenizer(const fs::path& folder, const fs::path& vocabulary, const char* pad) {
  make_directories(folder);
  for (const char* name : {"vocab.json", "merges.txt"}) fs::copy(vocabulary / name, folder / name);
  Json config = read_json(vocabulary / "tokenizer_config.json");
  config["pad_token"] = pad;
  write_json(folder / "tokenizer_config.json", config);
}

}  // namespace

models::UNet2DConfig small_unet_config(SmallRelease release) {
  models::UNet2DConfig c = release == SmallRelease::refiner ? models::sdxl_refiner_config() : models::sdxl_base_config();
  c.layers_per_block = {1};
  if (release == SmallRelease::refiner) {
    c.block_out_channels = {64, 64, 128, 128}, c.attention_head_dim = {1, 1, 2, 2}, c.transformer_layers_per_block = {1};
  } else {
    c.block_out_channels = {64, 64, 128}, c.attention_head_dim = {1, 1, 2}, c.transformer_layers_per_block = {1, 1, 2};
  }
  if (release == SmallRelease::version1) {
    c.attention_head_dim = {8}, c.transformer_layers_per_block = {1}, c.cross_attention_dim = 768, c.use_linear_projection = false;
    c.addition_embed_type = "", c.projection_class_embeddings_input_dim = 0, c.sample_size = 64;
    c.down_block_types = {"CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"};
    c.up_block_types = {"UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"};
  }
  return c;
}

models::AutoencoderKlConfig small_vae_config(SmallRelease release) {
  const bool version1 = release == SmallRelease::version1;
  models::AutoencoderKlConfig c;
  c.block_out_channels = {32, 32, 64, 64}, c.layers_per_block = 1, c.sample_size = version1 ? 512 : 1024;
  c.scaling_factor = version1 ? 0.18215 : 0.13025;
  return c;
}

models::ClipTextConfig small_text_config(bool open_clip) {
  models::ClipTextConfig c;
  c.hidden_size = open_clip ? 128 : 64, c.intermediate_size = 4 * c.hidden_size, c.num_hidden_layers = 2;
  c.num_attention_heads = open_clip ? 2 : 1, c.vocab_size = 722, c.projection_dim = open_clip ? 64 : 64;
  c.projection = open_clip, c.activation = open_clip ? models::ClipActivation::gelu : models::ClipActivation::quick_gelu;
  return c;
}

void write_small_release(const fs::path& folder, SmallRelease release, const fs::path& vocabulary) {
  const bool first = release != SmallRelease::refiner, second = release != SmallRelease::version1;
  const models::StabilityRelease& facts = models::stability_releases()[static_cast<size_t>(release)];
  write_small_network<models::UNet2DConditionModel>(folder / "unet", small_unet_config(release), 1);
  write_small_network<models::AutoencoderKL>(folder / "vae", small_vae_config(release), 2);
  if (first) write_small_network<models::ClipTextModel>(folder / "text_encoder", small_text_config(false), 3);
  if (first) write_small_tokenizer(folder / "tokenizer", vocabulary, "<|endoftext|>");
  if (second) write_small_network<models::ClipTextModel>(folder / "text_encoder_2", small_text_config(true), 4);
  if (second) write_small_tokenizer(folder / "tokenizer_2", vocabulary, "!");
  make_directories(folder / "scheduler");
  write_json(folder / "scheduler" / "scheduler_config.json", models::scheduler_config_of(facts, false, false));
  const auto entry = [](bool there, const char* library, const char* name) { return there ? Json({library, name}) : Json({nullptr, nullptr}); };
  Json index = {{"_class_name", facts.pipeline}};
  if (second) index["force_zeros_for_empty_prompt"] = facts.zero_null_text;
  if (release == SmallRelease::refiner) index["requires_aesthetics_score"] = true;
  if (!second) index["safety_checker"] = {nullptr, nullptr}, index["feature_extractor"] = {nullptr, nullptr}, index["requires_safety_checker"] = false;
  index["scheduler"] = {"diffusers", second ? "EulerDiscreteScheduler" : "DDIMScheduler"};
  index["text_encoder"] = entry(first, "transformers", "CLIPTextModel");
  index["tokenizer"] = entry(first, "transformers", "CLIPTokenizer");
  if (second) index["text_encoder_2"] = entry(true, "transformers", "CLIPTextModelWithProjection");
  if (second) index["tokenizer_2"] = entry(true, "transformers", "CLIPTokenizer");
  index["unet"] = {"diffusers", "UNet2DConditionModel"};
  index["vae"] = {"diffusers", "AutoencoderKL"};
  write_json(folder / "model_index.json", index);
}

}  // namespace fewstep::support
