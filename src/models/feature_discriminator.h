// Discriminator on the features of a frozen network: one head per tapped depth, as StyleGAN-T (Sauer et al. 2023, arXiv
// 2301.09515) and ADD (arXiv 2311.17042) do it, and the functions that tap those features.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/json.h"
#include "src/config/visitor.h"
#include "src/nn/layers.h"
#include "src/nn/spectral_norm.h"

namespace fewstep::models {

class ConvEncoder;
class Dinov2Model;

struct FeatureDiscriminatorConfig {
  std::vector<int64_t> channels = {};  // of each tap
  std::string head = "stylegan_t";
  // batch_local: statistics of `virtual_batch` samples of one call, none running (at one sample: instance norm, use group);
  // group: GroupNorm; none.
  std::string norm = "batch_local";
  int64_t virtual_batch = 8, norm_groups = 8;
  int64_t kernel = 9;             // of the residual circular convolution, odd
  int64_t text_width = 0;         // 0: unconditional
  int64_t projection_width = 64;  // d of the projection <out, W c> / sqrt(d)
  static FeatureDiscriminatorConfig from_json(const Json& json, std::string_view where);
  Json to_json() const;
  void validate(std::string_view where) const;
};
// Without channels and text_width: they follow from the feature network and the text encoder.
void describe(config::Visitor& v, FeatureDiscriminatorConfig& c);

// Virtual batches of BatchNormLocal by the order of sample ids, not of rows: sorted id number i goes to group i * G / B with
// G = ceil(B / virtual_batch). int64 [B] -> int64 [B], CPU. Ranks whose samples fill whole virtual batches equal one rank.
Tensor virtual_batches(const Tensor& ids, int64_t virtual_batch);

// StyleGAN-T's batch norm: mean and (biased) variance over (samples of a group, positions), affine, no running statistics.
class BatchNormLocal : public nn::Module {
 public:
  explicit BatchNormLocal(int64_t channels, double eps = 1e-5);
  Tensor operator()(const Tensor& x, const Tensor& groups) const;  // [B, C, L], int64 [B] from virtual_batches
  Tensor weight, bias;

 protected:
  void reset(at::Generator& generator) override;

 private:
  double eps_;
};

class FeatureDiscriminator : public nn::Module {
 public:
  explicit FeatureDiscriminator(const FeatureDiscriminatorConfig& config);
  const FeatureDiscriminatorConfig& config() const { return config_; }
  // taps: one [B, C_i, L_i] each; text [B, text_width] (undefined when unconditional) -> logits [B, sum L_i].
  // Real and fake images go into calls of their own: a virtual batch must not mix them. `ids`: int64 [B], for the virtual
  // batches; undefined: the order of rows. In training mode every call makes a power iteration step (nn/spectral_norm.h).
  Tensor operator()(const std::vector<Tensor>& taps, const Tensor& text = {}, const Tensor& ids = {}) const;

 private:
  // Normalised circular convolution - norm - LeakyReLU 0.2
  struct Block : nn::Module {
    Block(const FeatureDiscriminatorConfig& c, int64_t channels, int64_t kernel);
    Tensor operator()(const Tensor& x, const Tensor& groups) const;
    nn::SpectralConv1d conv;
    std::unique_ptr<BatchNormLocal> local;
    std::unique_ptr<nn::GroupNorm> group;
  };
  struct Head : nn::Module {
    Head(const FeatureDiscriminatorConfig& c, int64_t channels);
    Tensor operator()(const Tensor& x, const Tensor& text, const Tensor& groups) const;
    Block first, residual;
    nn::SpectralConv1d classify;
    std::unique_ptr<nn::Linear> project;
  };
  FeatureDiscriminatorConfig config_;
  nn::ModuleList<Head> heads_;
};

struct FeatureTapOptions {
  std::vector<int64_t> blocks = {};  // DINOv2: 0 embeddings, i the output of block i; ConvEncoder: stages from 0
  int64_t side = 0;                  // pixels the images are resized to (short side kept in proportion); 0: their own size
  bool imagenet = true;              // [-1, 1] -> [0, 1] -> ImageNet mean and deviation; false: images stay in [-1, 1]
};
// Features of images float [B, 1 or C, H, W] in [-1, 1], one [B, D, h w] a block: the token map plus the class token at every
// place ("readout add"). Images are resized (bilinear, antialiased) to the nearest multiples of the patch; one channel is
// repeated for networks that read three. The network is frozen for the call: gradients flow to `images` only, and no
// parameter's flags or grad change. Error for a block the network does not have.
std::vector<Tensor> feature_taps(Dinov2Model& network, const Tensor& images, const FeatureTapOptions& options);
// The same of stages of a ConvEncoder, [B, C_i, H_i W_i]; it reads [-1, 1], so imagenet is ignored.
std::vector<Tensor> feature_taps(ConvEncoder& network, const Tensor& images, const FeatureTapOptions& options);
// Channels of those taps, for FeatureDiscriminatorConfig::channels.
std::vector<int64_t> tap_channels(const Dinov2Model& network, const FeatureTapOptions& options);
std::vector<int64_t> tap_channels(const ConvEncoder& network, const FeatureTapOptions& options);

// `fewstep model verify` of a FeatureDiscriminator: input.tap0 ... [, input.text] -> logits (eval), then one pass in training
// mode: train_logits, loss = mean of their squares, the buffers after it, gradients of parameters and of the taps.
TensorMap feature_discriminator_reference(nn::Module& module, const TensorMap& inputs, const Json& arguments, bool gradients);

}  // namespace fewstep::models
