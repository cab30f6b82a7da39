#include "src/pipelines/latent_space.h"

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/table.h"
#include "src/models/autoencoder_kl.h"
#include "src/models/model_folder.h"
#include "src/pipelines/components.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "src/tensor/shape.h"

namespace fewstep::pipelines {
namespace fs = std::filesystem;
namespace {

constexpr const char* kSpaceFile = "latent_space_config.json";

void check_images(const Tensor& images, const LatentSpace& space) {
  const auto [B, C, H, W] = dims<4>(images);
  if (C != space.image_channels())
    fail<ConfigError>("{}: images of {} channels, it takes {}", space.description(), C, space.image_channels());
  if (H < 1 || W < 1 || H % space.factor() != 0 || W % space.factor() != 0)
    fail<ConfigError>(
        "{}: images of {} x {} are not a multiple of {}; set the data set's size (or height, width) to one",
        space.description(), H, W, space.factor());
}

// Pixels, folded by `factor` (1: the identity). Lossless but for rounding.
class PixelSpace : public LatentSpace {
 public:
  PixelSpace(int64_t image_channels, int64_t factor, double shift, double scale)
      : image_channels_(image_channels), factor_(factor), shift_(shift), scale_(scale) {}
  Tensor encode(const Tensor& images, const LatentDraw&) const override {
    check_images(images, *this);
    const NoGrad no_grad;
    return ((factor_ > 1 ? at::pixel_unshuffle(images, factor_) : images) - shift_) * scale_;
  }
  Tensor decode(const Tensor& latents) const override {
    const Tensor folded = latents / scale_ + shift_;
    return factor_ > 1 ? at::pixel_shuffle(folded, factor_) : folded;
  }
  int64_t channels() const override { return image_channels_ * factor_ * factor_; }
  int64_t image_channels() const override { return image_channels_; }
  int64_t factor() const override { return factor_; }
  std::string_view kind() const override { return factor_ > 1 ? "pixel_unshuffle" : "identity"; }
  std::string description() const override {
    return fmt::format("latents {} (factor {}, {} channels)", kind(), factor_, channels());
  }
  void save(const fs::path& folder) const override {
    make_directories(folder / "latent_space");
    write_json(folder / "latent_space" / kSpaceFile, {{"_class_name", "PixelSpace"},
                                                      {"image_channels", image_channels_},
                                                      {"factor", factor_},
                                                      {"shift", shift_},
                                                      {"scale", scale_}});
  }
  Json index_entries() const override { return {{"latent_space", {"fewstep", "PixelSpace"}}}; }

 private:
  int64_t image_channels_, factor_;
  double shift_, scale_;
};

class VaeSpace : public LatentSpace {
 public:
  VaeSpace(std::unique_ptr<models::AutoencoderKL> vae, fs::path source)
      : vae_(std::move(vae)), source_(std::move(source)) {}
  Tensor encode(const Tensor& images, const LatentDraw& draw) const override {
    check_images(images, *this);
    const NoGrad no_grad;
    const models::Posterior posterior = vae_->encode(images.to(device_));
    return scaled(posterior.mean, draw.ids.defined() ? posterior.std() : Tensor(), draw);
  }
  Tensor from_posterior(const Tensor& mean, const Tensor& std, const LatentDraw& draw) const override {
    const NoGrad no_grad;
    return scaled(mean.to(device_), std.defined() ? std.to(device_) : Tensor(), draw);
  }
  Tensor decode(const Tensor& latents) const override { return vae_->decode(vae_->unscale(latents)); }
  int64_t channels() const override { return vae_->config().latent_channels; }
  int64_t image_channels() const override { return vae_->config().in_channels; }
  int64_t factor() const override { return vae_->config().factor(); }
  std::string_view kind() const override { return "vae"; }
  std::string description() const override {
    return fmt::format("latents of a VAE (factor {}, {} channels)", factor(), channels());
  }
  fs::path source() const override { return source_; }
  void to(at::Device device) override {
    device_ = device;
    vae_->to(device);
  }
  void save(const fs::path& folder) const override { link_component(source_, folder, "vae"); }
  Json index_entries() const override { return {{"vae", {"diffusers", "AutoencoderKL"}}}; }

 private:
  Tensor scaled(const Tensor& mean, const Tensor& std, const LatentDraw& draw) const {
    if (!draw.ids.defined() || !std.defined()) return vae_->scale(mean);
    const Tensor noise = normal_by_id(draw.ids, mean.sizes().slice(1), draw.seed, Stream::posterior, draw.step);
    return vae_->scale(mean + std * noise.to(mean.options()));
  }
  std::unique_ptr<models::AutoencoderKL> vae_;
  fs::path source_;  // the model folder it came from
  at::Device device_ = at::kCPU;
};

std::unique_ptr<LatentSpace> load_vae_space(const fs::path& folder) {
  return std::make_unique<VaeSpace>(load_frozen_component<models::AutoencoderKL>(folder / "vae", "AutoencoderKL"),
                                    folder);
}

std::unique_ptr<LatentSpace> load_pixel_space(const fs::path& path) {
  const Json config = read_json(path);
  const auto number = [&](const char* key) {
    const auto it = config.is_object() ? config.find(key) : config.end();
    if (it == config.end() || !it->is_number()) fail<DataError>("{}: {}: a number is expected", path.string(), key);
    return it->get<double>();
  };
  const auto channels = static_cast<int64_t>(number("image_channels")), factor = static_cast<int64_t>(number("factor"));
  const double shift = number("shift"), scale = number("scale");
  if (channels < 1 || factor < 1 || !(scale > 0))
    fail<DataError>("{}: image_channels {}, factor {} and scale {} must be positive", path.string(), channels, factor,
                    scale);
  return std::make_unique<PixelSpace>(channels, factor, shift, scale);
}

struct PixelSpaceConfig : LatentSpaceConfig {
  explicit PixelSpaceConfig(bool folded_) : folded(folded_), factor(folded_ ? 2 : 1) {}
  bool folded, normalise = true;
  int64_t factor;
  double shift = 0, scale = 1;
  std::string_view kind() const override { return folded ? "pixel_unshuffle" : "identity"; }
  void describe(config::Visitor& v) override {
    if (folded) v.field("factor", factor, "so many pixels of a row, and rows, become channels", {2, 64});
    v.field("normalise", normalise,
            "shift and scale from the training images: zero mean, unit deviation over all pixels");
    v.field("shift", shift, "without normalise: (pixel - shift) * scale, for pixels in [-1, 1]");
    v.field("scale", scale, "see shift", config::kPositive);
  }
  std::unique_ptr<LatentSpace> build(int64_t image_channels, const Tensor& images) const override {
    if (!normalise) return std::make_unique<PixelSpace>(image_channels, factor, shift, scale);
    if (!images.defined() || images.numel() < 2)
      fail<ConfigError>("latents: normalise: there are no images to measure; set it to false");
    const Tensor values = images.to(at::kDouble);
    const double deviation = values.std().item<double>();
    if (!(deviation > 0)) fail<DataError>("latents: normalise: the images are all of one colour");
    return std::make_unique<PixelSpace>(image_channels, factor, values.mean().item<double>(), 1 / deviation);
  }
};

struct VaeSpaceConfig : LatentSpaceConfig {
  std::string folder;
  std::string_view kind() const override { return "vae"; }
  void describe(config::Visitor& v) override {
    v.require("folder");
    v.field("folder", folder, "run or model folder with vae/ (config.json and weights); it stays as it is");
  }
  std::unique_ptr<LatentSpace> build(int64_t image_channels, const Tensor&) const override {
    if (!fs::exists(folder)) fail<ConfigError>("latents: folder {}: no such folder", folder);
    const fs::path model = fs::exists(fs::path(folder) / "vae") ? fs::path(folder) : models::as_model_folder(folder);
    if (!fs::exists(model / "vae" / "config.json"))
      fail<ConfigError>("latents: {}: there is no vae/config.json in it", model.string());
    auto space = load_vae_space(model);
    if (image_channels > 0 && space->image_channels() != image_channels)
      fail<ConfigError>("latents: {}: the VAE takes images of {} channels, the data has {}", folder,
                        space->image_channels(), image_channels);
    return space;
  }
};

constexpr LatentSpaceKind kLatentSpaces[] = {
    {"identity", []() -> std::unique_ptr<LatentSpaceConfig> { return std::make_unique<PixelSpaceConfig>(false); }},
    {"pixel_unshuffle",
     []() -> std::unique_ptr<LatentSpaceConfig> { return std::make_unique<PixelSpaceConfig>(true); }},
    {"vae", []() -> std::unique_ptr<LatentSpaceConfig> { return std::make_unique<VaeSpaceConfig>(); }},
};

}  // namespace

std::span<const LatentSpaceKind> latent_space_kinds() { return kLatentSpaces; }

Tensor LatentSpace::from_posterior(const Tensor&, const Tensor&, const LatentDraw&) const {
  fail("{}: there is no posterior; cached latents belong to a VAE", description());
}

std::unique_ptr<LatentSpace> LatentSpace::load(const fs::path& folder, at::Device device) {
  const fs::path own = folder / "latent_space" / kSpaceFile;
  std::unique_ptr<LatentSpace> space;
  if (fs::exists(own))
    space = load_pixel_space(own);
  else if (fs::exists(folder / "vae" / "config.json"))
    space = load_vae_space(folder);
  else
    fail<DataError>("{}: neither vae/config.json nor latent_space/{}: pixels cannot be made from its latents",
                    folder.string(), kSpaceFile);
  space->to(device);
  return space;
}

double latent_difference(const LatentSpace& a, const LatentSpace& b) {
  if (a.channels() != b.channels() || a.factor() != b.factor() || a.image_channels() != b.image_channels())
    return std::numeric_limits<double>::infinity();
  // Colours that change smoothly over 8 x 8 latents, as in a picture.
  const NoGrad no_grad;
  const int64_t side = 8 * a.factor();
  const Tensor coarse = normal_by_id(at::zeros({1}, at::kLong), {a.image_channels(), 4, 4}, 1, Stream::eval, 0);
  const Tensor image = at::upsample_bicubic2d(coarse, {side, side}, false).mul(0.5).clamp(-1, 1);
  const Tensor x = a.encode(image).to(at::kCPU, at::kDouble), y = b.encode(image).to(at::kCPU, at::kDouble);
  return ((x - y).square().mean().sqrt() / x.square().mean().sqrt().clamp_min(1e-12)).item<double>();
}

}  // namespace fewstep::pipelines
