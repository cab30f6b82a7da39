// What the diffusion network sees of an image.
//
//   identity         the pixels, normalised
//   pixel_unshuffle  f x f pixels become f^2 channels: 1 x 32 x 32 -> 4 x 16 x 16 for f = 2; lossless
//   vae              a frozen AutoencoderKL; its posterior is drawn anew in every epoch
//
// The latents of all three have about unit variance: (x - shift) * scale.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/json.h"
#include "src/config/visitor.h"
#include "src/tensor/tensor.h"

namespace fewstep::pipelines {

// Keys of the posterior's noise: (seed, Stream::posterior, step, id). Undefined ids: the posterior's mode.
struct LatentDraw {
  Tensor ids = {};  // int64 [B]
  uint64_t seed = 0;
  int64_t step = 0;
};

class LatentSpace {
 public:
  virtual ~LatentSpace() = default;
  // Images float [B, C, H, W] in [-1, 1], sides multiples of factor() -> [B, channels(), H / factor, W / factor], no
  // gradients. ConfigError on other channels or sides.
  virtual Tensor encode(const Tensor& images, const LatentDraw& draw = {}) const = 0;
  virtual Tensor decode(const Tensor& latents) const = 0;  // -> [B, C, H, W], about [-1, 1], not clamped
  // Cached posteriors (mean, std of raw latents [B, c, h, w]) -> what encode() gives. Error where there is no
  // posterior.
  virtual Tensor from_posterior(const Tensor& mean, const Tensor& std, const LatentDraw& draw = {}) const;
  virtual int64_t channels() const = 0;
  virtual int64_t image_channels() const = 0;
  virtual int64_t factor() const = 0;
  virtual std::string_view kind() const = 0;
  virtual std::string description() const = 0;  // for logs
  virtual std::filesystem::path source() const {
    return {};
  }  // vae: the model folder it came from, which caches are checked by
  virtual void to(at::Device) {}
  virtual void save(
      const std::filesystem::path& model_folder) const = 0;  // latent_space/latent_space_config.json, or vae/
  virtual Json index_entries() const = 0;
  static std::unique_ptr<LatentSpace> load(const std::filesystem::path& model_folder, at::Device device);
};

// Root mean square of the difference of what both make of one picture, over that of the first one's: 0 for equal
// spaces, a few percent for a VAE in half precision or fine-tuned with its latents kept, about 1.4 for strangers,
// infinite for other shapes.
double latent_difference(const LatentSpace& a, const LatentSpace& b);
constexpr double kSameLatents = 0.1;

struct LatentSpaceConfig {
  virtual ~LatentSpaceConfig() = default;
  virtual std::string_view kind() const = 0;
  virtual void describe(config::Visitor& v) = 0;
  // `images`: some training images in [-1, 1]: where `normalise` asks for it, their mean and deviation are taken.
  // Undefined, and image_channels 0, when the data set holds latents.
  virtual std::unique_ptr<LatentSpace> build(int64_t image_channels, const Tensor& images) const = 0;
};
struct LatentSpaceKind {
  std::string_view name;
  std::unique_ptr<LatentSpaceConfig> (*make)();
};
std::span<const LatentSpaceKind> latent_space_kinds();

}  // namespace fewstep::pipelines
