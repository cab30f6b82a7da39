// Configuration of UNet2DConditionModel: the fields of diffusers' unet/config.json.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/json.h"
#include "src/config/visitor.h"

namespace fewstep::models {

struct UNet2DConfig {
  int64_t sample_size = 0;  // side of the latents it is trained for; 0: not said. The network takes any size
  int64_t in_channels = 4, out_channels = 4;
  bool center_input_sample = false;  // 2 x - 1 first
  bool flip_sin_to_cos = true;       // sinusoids as [cos | sin]; false: [sin | cos]
  int64_t freq_shift = 0;            // of their frequencies: exp(-ln 10000 i / (half - freq_shift))
  // One entry a level, finest first in `down`, coarsest first in `up`: (CrossAttn)DownBlock2D, (CrossAttn)UpBlock2D.
  std::vector<std::string> down_block_types = {"CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"};
  std::string mid_block_type = "UNetMidBlock2DCrossAttn";  // or UNetMidBlock2D (one residual block); "": none
  std::vector<std::string> up_block_types = {"UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"};
  std::vector<int64_t> block_out_channels = {320, 640, 1280, 1280};
  // One entry a level (finest first), or one for all.
  std::vector<int64_t> layers_per_block = {2};              // residual blocks of a down level; up levels have one more
  std::vector<int64_t> transformer_layers_per_block = {1};  // blocks of each transformer; the mid block takes the last
  std::vector<int64_t> attention_head_dim = {8};            // NUMBER of heads: diffusers' name is a known mistake
  int64_t norm_num_groups = 32;
  double norm_eps = 1e-5;            // of residual blocks and conv_norm_out; transformers have 1e-6
  int64_t cross_attention_dim = 1280;  // width of the context
  bool use_linear_projection = false;  // proj_in and proj_out of transformers: linear (SD 2, SDXL) or 1 x 1 convolution
  std::string addition_embed_type;     // "" or "text_time": [pooled | sinusoids of the numbers] is added to the time embedding
  int64_t addition_time_embed_dim = 256;                 // sinusoid of each number
  int64_t projection_class_embeddings_input_dim = 0;     // pooled width + count of numbers * addition_time_embed_dim
  std::string resnet_time_scale_shift = "default";       // or "scale_shift": the time embedding scales and shifts norm2
  int64_t conv_in_kernel = 3, conv_out_kernel = 3;
  bool upcast_attention = false;     // kept for diffusers: the softmax is in float32 in any case

  int64_t levels() const { return static_cast<int64_t>(block_out_channels.size()); }
  int64_t factor() const { return int64_t{1} << (levels() - 1); }  // sizes that need no rounding are its multiples
  int64_t layers(int64_t level) const { return of_level(layers_per_block, level); }
  int64_t depth(int64_t level) const { return of_level(transformer_layers_per_block, level); }
  int64_t heads(int64_t level) const { return of_level(attention_head_dim, level); }
  int64_t time_embed_dim() const { return 4 * block_out_channels.front(); }
  bool has_additions() const { return !addition_embed_type.empty(); }
  bool has_cross_attention() const;  // of any level: then a context is needed

  // ConfigError for keys of diffusers that would change the network in a way that is not implemented.
  static UNet2DConfig from_json(const Json& json, std::string_view where);
  Json to_json() const;
  void validate(std::string_view where) const;

 private:
  static int64_t of_level(const std::vector<int64_t>& values, int64_t level) {
    return values.size() == 1 ? values.front() : values.at(static_cast<size_t>(level));
  }
};
// Of a training config: the caller sets in_channels, out_channels, sample_size and the widths of its conditions.
void describe(config::Visitor& v, UNet2DConfig& c);

UNet2DConfig sdxl_base_config();     // 2,567,463,684 parameters
UNet2DConfig sdxl_refiner_config();  // 2,259,526,660 parameters

}  // namespace fewstep::models
