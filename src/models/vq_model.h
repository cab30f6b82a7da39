// VQ tokenizer (van den Oord et al. 2017, arXiv 1711.00937) in the form and with the names of diffusers' `VQModel`.
// Straight-through gradients, commitment and codebook updates belong to the trainer.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "src/base/json.h"
#include "src/config/visitor.h"
#include "src/models/autoencoder_blocks.h"

namespace fewstep::models {

struct VqConfig {
  int64_t in_channels = 3, out_channels = 3;
  std::vector<int64_t> block_out_channels = {64};  // the last one is at the code grid's resolution
  int64_t layers_per_block = 1;
  int64_t latent_channels = 3;
  int64_t sample_size = 32;                        // image side it is trained for
  int64_t num_vq_embeddings = 256;
  int64_t norm_num_groups = 32;
  int64_t vq_embed_dim = 0;                        // 0: latent_channels
  double scaling_factor = 0.18215;                 // kept for diffusers; not used
  bool mid_block_add_attention = true;
  bool lookup_from_codebook = false;               // kept for diffusers' decode(); decode() here never quantises
  // Ours: the network works on patch_size x patch_size pixels folded into channels (1: diffusers' form exactly). A cheap
  // first stage on small machines: full-resolution convolutions cost most of the time.
  int64_t patch_size = 1;

  int64_t embed_dim() const { return vq_embed_dim > 0 ? vq_embed_dim : latent_channels; }
  int64_t factor() const { return patch_size << (block_out_channels.size() - 1); }  // pixels per code, each direction
  static VqConfig from_json(const Json& json, std::string_view where);
  Json to_json() const;
  void validate(std::string_view where) const;
};
void describe(config::Visitor& v, VqConfig& c);  // of a training config; channels and sample_size follow from the data

struct Quantized {
  Tensor indices;  // int64 [B, h, w]
  Tensor latents;  // [B, D, h, w], the codes
};

class VQModel : public nn::Module {
 public:
  explicit VQModel(const VqConfig& config);
  const VqConfig& config() const { return config_; }

  Tensor encode(const Tensor& images) const;            // [B, C, H, W] in [-1, 1] -> [B, D, h, w], before quantisation
  Quantized quantize(const Tensor& latents) const;      // nearest code by Euclidean distance; without gradients
  Tensor codes(const Tensor& indices) const;            // int64 [B, h, w] -> [B, D, h, w]
  Tensor decode(const Tensor& latents) const;           // [B, D, h, w] -> [B, C, H, W]
  Tensor decode_indices(const Tensor& indices) const;   // int64 [B, h, w] -> [B, C, H, W]
  // [num_vq_embeddings, D]. A buffer: the trainer's moving averages write it, no optimiser sees it.
  Tensor codebook() const { return quantize_.embedding.weight; }
  Tensor last_layer() const { return decoder_.last_layer(); }

 private:
  struct Codebook : nn::Module {  // quantize.embedding.weight
    struct Table : nn::Module {
      Table(int64_t count, int64_t dim);
      Tensor weight;

     protected:
      void reset(at::Generator& generator) override;  // U(+-1 / count), as diffusers
    };
    Codebook(int64_t count, int64_t dim);
    Table embedding;
  };
  VqConfig config_;
  Encoder encoder_;
  nn::Conv2d quant_conv_;
  Codebook quantize_;
  nn::Conv2d post_quant_conv_;
  Decoder decoder_;
};

}  // namespace fewstep::models
