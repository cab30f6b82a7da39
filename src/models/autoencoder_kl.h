// Variational autoencoder of latent diffusion (Kingma and Welling 2013, arXiv 1312.6114; Rombach et al. 2021, arXiv 2112.10752;
// SDXL, arXiv 2307.01952, section 2.4) in the form and with the names of diffusers' `AutoencoderKL`. Losses belong to the trainer.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "src/base/json.h"
#include "src/config/visitor.h"
#include "src/models/autoencoder_blocks.h"

namespace fewstep::models {

struct AutoencoderKlConfig {
  int64_t in_channels = 3, out_channels = 3;
  std::vector<int64_t> block_out_channels = {64};  // the last one is at the latents' resolution
  int64_t layers_per_block = 1;
  int64_t latent_channels = 4;
  int64_t norm_num_groups = 32;
  int64_t sample_size = 32;                        // image side it is trained for
  double scaling_factor = 0.18215;                 // of scale(): about 1 / deviation of the latents
  double shift_factor = 0;                         // of scale(): the latents' mean
  std::vector<double> latents_mean, latents_std;   // of scale(), a value a channel; empty: shift_factor instead
  bool force_upcast = true;                        // kept for diffusers: float16 would overflow
  bool use_quant_conv = true, use_post_quant_conv = true;  // 1 x 1 convolutions around the latents
  bool mid_block_add_attention = true;
  // Ours: the network works on patch_size x patch_size pixels folded into channels (1: diffusers' form exactly), as in VqConfig.
  int64_t patch_size = 1;

  int64_t factor() const { return patch_size << (block_out_channels.size() - 1); }  // pixels per latent, each direction
  static AutoencoderKlConfig from_json(const Json& json, std::string_view where);
  Json to_json() const;
  void validate(std::string_view where) const;
};
// Of a training config; channels and sample_size follow from the data, the factors of scale() are measured.
void describe(config::Visitor& v, AutoencoderKlConfig& c);

// Diagonal Gaussian over latents [B, Z, h, w], not scaled.
struct Posterior {
  Tensor mean, logvar;                       // logvar within [-30, 20]
  Tensor std() const;                        // exp(logvar / 2)
  Tensor sample(const Tensor& noise) const;  // mean + std noise; noise: standard normal of the mean's shape
  Tensor kl() const;                         // to the standard normal, in nats, summed over an image's latents: [B]
};

class AutoencoderKL : public nn::Module {
 public:
  explicit AutoencoderKL(const AutoencoderKlConfig& config);
  const AutoencoderKlConfig& config() const { return config_; }

  Posterior encode(const Tensor& images) const;  // [B, C, H, W] in [-1, 1]; Error when a side is no multiple of factor()
  Tensor decode(const Tensor& latents) const;    // [B, Z, h, w], not scaled -> [B, C, h f, w f], about [-1, 1], not clamped
  // Raw latents <-> what a diffusion model sees: (z - shift) factor, or (z - mean) factor / std a channel.
  Tensor scale(const Tensor& raw) const;
  Tensor unscale(const Tensor& scaled) const;
  const nn::Conv2d& last_layer() const { return decoder_.out_conv(); }
  // Stages keep their inputs only and run again in backward.
  void set_recompute(bool on);

 private:
  Tensor channelwise(const std::vector<double>& values, const Tensor& like) const;  // [1, Z, 1, 1]
  AutoencoderKlConfig config_;
  Encoder encoder_;
  Decoder decoder_;
  std::optional<nn::Conv2d> quant_conv_, post_quant_conv_;
};

}  // namespace fewstep::models
