#include "src/models/stability_configs.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "src/base/error.h"
#include "src/base/table.h"
#include "src/models/stability_names.h"
#include "src/tensor/ops.h"

namespace fewstep::models {
namespace {

constexpr StabilityRelease kReleases[] = {
    {"sdxl-base", "stable-diffusion-xl-v1-base", "StableDiffusionXLPipeline", 2048, 2816, 0.13025, 1024, true},
    {"sdxl-refiner", "stable-diffusion-xl-v1-refiner", "StableDiffusionXLImg2ImgPipeline", 1280, 2560, 0.13025, 1024, false},
    {"sd-1", "stable-diffusion-v1", "StableDiffusionPipeline", 768, 0, 0.18215, 512, false},
};
constexpr int64_t kHeadWidth = 64, kHeadsOfVersion1 = 8, kLatentChannels = 4, kSinusoid = 256;

// Tensors of one network, looked up with errors that name the file.
class Shapes {
 public:
  Shapes(const TensorMap& tensors, std::string_view where) : tensors_(tensors), where_(where) {}
  int64_t size(const std::string& name, int64_t dim) const {
    const auto it = tensors_.find(name);
    if (it == tensors_.end()) fail<DataError>("{}: tensor '{}' is missing", where_, name);
    if (it->second.dim() <= dim) fail<DataError>("{}: tensor '{}' has {} dimensions", where_, name, it->second.dim());
    return it->second.size(dim);
  }
  bool has(const std::string& name) const { return tensors_.contains(name); }
  std::optional<int64_t> dims(const std::string& name) const {
    const auto it = tensors_.find(name);
    return it == tensors_.end() ? std::nullopt : std::optional<int64_t>(it->second.dim());
  }
  int64_t blocks(const std::string& format_prefix) const {  // how many of prefix0, prefix1, ... there are
    int64_t n = 0;
    while (std::any_of(tensors_.begin(), tensors_.end(), [&](const auto& t) { return t.first.starts_with(fmt::format("{}{}.", format_prefix, n)); })) ++n;
    return n;
  }
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const auto& [name, t] : tensors_) out.push_back(name);
    return out;
  }

 private:
  const TensorMap& tensors_;
  std::string_view where_;
};

// Depth of the transformers of a block; every one in it must have it.
int64_t depth_of(const Shapes& shapes, const std::string& block, int64_t count, std::string_view where) {
  int64_t depth = shapes.blocks(block + "attentions.0.transformer_blocks.");
  for (int64_t j = 1; j < count; ++j)
    if (const int64_t other = shapes.blocks(fmt::format("{}attentions.{}.transformer_blocks.", block, j)); other != depth)
      fail<DataError>("{}: transformers of {} and of {} blocks in {}: a pruned network, which is not supported", where, depth, other, block);
  return depth;
}

void check_groups(int64_t channels, std::string_view where) {
  if (channels % 32 != 0) fail<DataError>("{}: {} channels are no multiple of the 32 groups that its release normalises by; the file has no configs of its own", where, channels);
}

int64_t heads_of(int64_t channels, bool version1, std::string_view where) {
  if (version1) return kHeadsOfVersion1;
  if (channels % kHeadWidth != 0)
    fail<DataError>("{}: {} channels are no multiple of {}, the heads cannot be told (files that fewstep writes hold their configs)", where, channels, kHeadWidth);
  return channels / kHeadWidth;
}

}  // namespace

std::span<const StabilityRelease> stability_releases() { return kReleases; }
const StabilityRelease& stability_release(std::string_view name) { return find_entry(stability_releases(), name, "release"); }

const StabilityRelease& release_of_vector_width(int64_t context_width, int64_t vector_width, std::string_view where) {
  if (context_width == 1024 && vector_width == 0)
    fail<DataError>("{}: a network of Stable Diffusion 2 (context of 1024), which is not supported: only SDXL and 1.x are", where);
  for (const StabilityRelease& r : kReleases)
    if (r.context_width == context_width && r.vector_width == vector_width) return r;
  std::string known;
  for (const StabilityRelease& r : kReleases) known += fmt::format("{}{} {} and {}", known.empty() ? "" : ", ", r.name, r.context_width, r.vector_width);
  fail<DataError>("{}: a UNet with a context of {} and a vector of {} is none of the known ones ({}), and the file has no configs of its own",
                  where, context_width, vector_width, known);
}

const StabilityRelease& release_of_unet(const TensorMap& unet, std::string_view where) {
  const Shapes shapes(unet, where);
  int64_t context = 0;
  for (const auto& [name, t] : unet)
    if (name.ends_with(".attn2.to_k.weight") && t.dim() == 2) context = t.size(1);
  const int64_t vector = shapes.has("add_embedding.linear_1.weight") ? shapes.size("add_embedding.linear_1.weight", 1) : 0;
  const StabilityRelease& release = release_of_vector_width(context, vector, where);
  const int64_t in = shapes.size("conv_in.weight", 1);
  if (in == 2 * kLatentChannels + 1) fail<DataError>("{}: an inpainting network ({} input channels), which is not supported", where, in);
  if (in != kLatentChannels) fail<DataError>("{}: {} input channels; only networks of {} latent channels are supported (no image conditioning)", where, in, kLatentChannels);
  return release;
}

namespace {

struct Levels {
  std::vector<int64_t> channels, heads, depths;
  std::vector<std::string> down, up;
};

Levels levels_of(const Shapes& shapes, const UnetNames& names, bool version1, std::string_view where) {
  Levels out;
  const int64_t mid = shapes.blocks("mid_block.attentions.0.transformer_blocks.");
  for (int64_t i = 0; i < names.levels; ++i) {
    const std::string block = fmt::format("down_blocks.{}.", i), mirror = fmt::format("up_blocks.{}.", names.levels - 1 - i);
    out.channels.push_back(shapes.size(block + "resnets.0.conv1.weight", 0));
    check_groups(out.channels.back(), where);
    out.heads.push_back(heads_of(out.channels.back(), version1, where));
    const int64_t depth = depth_of(shapes, block, names.layers_per_block, where);
    if (depth_of(shapes, mirror, names.layers_per_block + 1, where) != depth)
      fail<DataError>("{}: {} and {} have transformers of different depth: a pruned network, which is not supported", where, block, mirror);
    out.depths.push_back(depth);
    out.down.push_back(depth > 0 ? "CrossAttnDownBlock2D" : "DownBlock2D");
    out.up.insert(out.up.begin(), depth > 0 ? "CrossAttnUpBlock2D" : "UpBlock2D");
  }
  // diffusers takes the middle block's depth from the last entry; entries of levels without attention are not used.
  if (mid < 1 || (out.depths.back() > 0 && out.depths.back() != mid))
    fail<DataError>("{}: a middle block with {} transformer blocks beside a level with {}: a pruned network, which is not supported", where, mid, out.depths.back());
  const int64_t unused = *std::max_element(out.depths.begin(), out.depths.end()) == mid && out.depths.back() == 0 ? mid : 1;
  out.depths.back() = mid;
  for (int64_t& depth : out.depths) depth = depth > 0 ? depth : unused;
  return out;
}

}  // namespace

Json unet_config_of(const TensorMap& unet, const StabilityRelease& release, std::string_view where) {
  const Shapes shapes(unet, where);
  const UnetNames names = UnetNames::from_ours(shapes.names(), where);
  const bool version1 = release.vector_width == 0;
  const Levels levels = levels_of(shapes, names, version1, where);
  const bool linear = shapes.dims("mid_block.attentions.0.proj_in.weight") == 2;
  const auto or_single = [](const std::vector<int64_t>& values) {  // diffusers writes one number where all are equal
    return std::all_of(values.begin(), values.end(), [&](int64_t v) { return v == values[0]; }) ? Json(values[0]) : Json(values);
  };
  Json c;
  c["_class_name"] = "UNet2DConditionModel";
  c["act_fn"] = "silu";
  c["addition_embed_type"] = version1 ? Json(nullptr) : Json("text_time");
  c["addition_time_embed_dim"] = version1 ? Json(nullptr) : Json(kSinusoid);
  c["attention_head_dim"] = or_single(levels.heads);
  c["block_out_channels"] = levels.channels;
  c["center_input_sample"] = false;
  c["cross_attention_dim"] = shapes.size("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1);
  c["down_block_types"] = levels.down;
  c["downsample_padding"] = 1;
  c["flip_sin_to_cos"] = true;
  c["freq_shift"] = 0;
  c["in_channels"] = shapes.size("conv_in.weight", 1);
  c["layers_per_block"] = names.layers_per_block;
  c["mid_block_scale_factor"] = 1;
  c["mid_block_type"] = "UNetMidBlock2DCrossAttn";
  c["norm_eps"] = 1e-5;
  c["norm_num_groups"] = 32;
  c["out_channels"] = shapes.size("conv_out.weight", 0);
  c["projection_class_embeddings_input_dim"] = version1 ? Json(nullptr) : Json(shapes.size("add_embedding.linear_1.weight", 1));
  c["resnet_time_scale_shift"] = "default";
  c["sample_size"] = release.side / 8;
  c["transformer_layers_per_block"] = or_single(levels.depths);
  c["up_block_types"] = levels.up;
  c["use_linear_projection"] = linear;
  return c;
}

Json vae_config_of(const TensorMap& vae, const StabilityRelease& release, std::string_view where) {
  const Shapes shapes(vae, where);
  const VaeNames names = VaeNames::from_ours(shapes.names(), where);
  std::vector<int64_t> channels;
  for (int64_t i = 0; i < names.levels; ++i) {
    channels.push_back(shapes.size(fmt::format("encoder.down_blocks.{}.resnets.0.conv1.weight", i), 0));
    check_groups(channels.back(), where);
  }
  const auto types = [&](const char* type) { return std::vector<std::string>(channels.size(), type); };
  const int64_t latents = shapes.size("decoder.conv_in.weight", 1);
  if (latents != kLatentChannels)
    fail<DataError>("{}: an autoencoder of {} latent channels, whose scale is not known (SDXL and 1.x have {})", where, latents, kLatentChannels);
  Json c;
  c["_class_name"] = "AutoencoderKL";
  c["act_fn"] = "silu";
  c["block_out_channels"] = channels;
  c["down_block_types"] = types("DownEncoderBlock2D");
  if (release.vector_width > 0) c["force_upcast"] = true;  // SDXL's overflows in float16
  c["in_channels"] = shapes.size("encoder.conv_in.weight", 1);
  c["latent_channels"] = latents;
  c["layers_per_block"] = names.layers_per_block;
  c["norm_num_groups"] = 32;
  c["out_channels"] = shapes.size("decoder.conv_out.weight", 0);
  c["sample_size"] = release.side;
  c["scaling_factor"] = release.scaling_factor;
  c["up_block_types"] = types("UpDecoderBlock2D");
  if (!shapes.has("quant_conv.weight")) c["use_quant_conv"] = false;
  if (!shapes.has("post_quant_conv.weight")) c["use_post_quant_conv"] = false;
  return c;
}

Json text_config_of(const TensorMap& text, bool open_clip, std::string_view where) {
  const Shapes shapes(text, where);
  const int64_t width = shapes.size("text_model.embeddings.token_embedding.weight", 1);
  const bool projection = shapes.has("text_projection.weight");
  Json c;
  c["architectures"] = {projection ? "CLIPTextModelWithProjection" : "CLIPTextModel"};
  c["attention_dropout"] = 0.0;
  c["bos_token_id"] = 0;
  c["dropout"] = 0.0;
  c["eos_token_id"] = 2;  // as published: the end token is then the largest id of a text
  c["hidden_act"] = open_clip ? "gelu" : "quick_gelu";
  c["hidden_size"] = width;
  c["initializer_factor"] = 1.0;
  c["initializer_range"] = 0.02;
  c["intermediate_size"] = shapes.size("text_model.encoder.layers.0.mlp.fc1.weight", 0);
  c["layer_norm_eps"] = 1e-5;
  c["max_position_embeddings"] = shapes.size("text_model.embeddings.position_embedding.weight", 0);
  c["model_type"] = "clip_text_model";
  c["num_attention_heads"] = heads_of(width, false, where);
  c["num_hidden_layers"] = shapes.blocks("text_model.encoder.layers.");
  c["pad_token_id"] = 1;
  c["projection_dim"] = projection ? shapes.size("text_projection.weight", 0) : width;
  c["vocab_size"] = shapes.size("text_model.embeddings.token_embedding.weight", 0);
  return c;
}

Json scheduler_config_of(const StabilityRelease& release, bool v_prediction, bool zero_terminal_snr) {
  const bool version1 = release.vector_width == 0;
  Json c;
  c["_class_name"] = version1 ? "DDIMScheduler" : "EulerDiscreteScheduler";
  c["beta_end"] = 0.012;
  c["beta_schedule"] = "scaled_linear";
  c["beta_start"] = 0.00085;
  if (version1) c["clip_sample"] = false, c["set_alpha_to_one"] = false;
  else c["interpolation_type"] = "linear", c["use_karras_sigmas"] = false;
  c["num_train_timesteps"] = 1000;
  c["prediction_type"] = v_prediction ? "v_prediction" : "epsilon";
  c["rescale_betas_zero_snr"] = zero_terminal_snr;
  c["steps_offset"] = 1;
  c["timestep_spacing"] = zero_terminal_snr ? "trailing" : "leading";  // leading steps would leave the terminal one out
  c["trained_betas"] = nullptr;
  return c;
}

}  // namespace fewstep::models
