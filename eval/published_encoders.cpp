// Published networks as encoders: InceptionV3 of FID, CLIP, DINOv2, VGG16, each with the image pipelines it is used
// with.
#include <fmt/ranges.h>

#include <atomic>

#include "eval/encoder.h"
#include "eval/preprocessing.h"
#include "src/base/error.h"
#include "src/base/table.h"
#include "src/models/clip.h"
#include "src/models/dinov2.h"
#include "src/models/fid_inception.h"
#include "src/models/model.h"
#include "src/models/vgg16.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace {

namespace fs = std::filesystem;
using models::InceptionDepth;

// A network with its identity; prepares images one by one.
template <class Network>
class Published : public ImageEncoder {
 public:
  Published(const fs::path& component, EncoderIdentity identity, at::Device device)
      : module_(models::load_model(component)), identity_(std::move(identity)), device_(device) {
    module_->to(device);
    module_->requires_grad(false);
  }
  Encoded encode(const Tensor& images) const override {
    std::vector<Tensor> rows;
    for (int64_t i = 0; i < images.size(0); ++i) rows.push_back(prepare(images[i]));
    return encode_prepared(at::stack(rows));
  }
  Encoded encode_prepared(const Tensor& batch) const override {
    const NoGrad no_grad;
    return run(batch.to(device_));
  }
  EncoderIdentity identity() const override { return identity_; }

 protected:
  virtual Encoded run(const Tensor& batch) const = 0;
  Network& network() const { return dynamic_cast<Network&>(*module_); }
  static Tensor to_host(const Tensor& x) { return x.to(at::kCPU, at::kFloat); }
  std::unique_ptr<nn::Module> module_;
  EncoderIdentity identity_;
  at::Device device_;
};

// Grey images are copied to three channels; every published network reads RGB.
Tensor as_rgb(const Tensor& image) {
  if (image.size(0) == 3) return image;
  if (image.size(0) != 1) fail<DataError>("images of {} channels for a network that reads RGB", image.size(0));
  return image.expand({3, -1, -1});
}

struct Tap {
  std::string_view name;
  InceptionDepth depth;
  bool spatial;
};
constexpr Tap kTaps[] = {{"2048", InceptionDepth::pool3, false},
                         {"768", InceptionDepth::mixed6e, false},
                         {"192", InceptionDepth::pool2, false},
                         {"64", InceptionDepth::pool1, false},
                         {"spatial", InceptionDepth::mixed6e, true}};
constexpr int64_t kSpatialChannels = 7;  // sFID (Nash et al. 2021) as ADM computes it: 7 x 17 x 17 = 2,023 features

class InceptionEncoder : public Published<models::FidInception> {
 public:
  InceptionEncoder(const fs::path& component, EncoderIdentity identity, at::Device device,
                   const EncoderOptions& options)
      : Published(component, std::move(identity), device),
        pipeline_(find_inception_pipeline(options.pipeline.empty() ? "clean" : options.pipeline)),
        tap_(
            find_entry(std::span<const Tap>(kTaps), options.tap.empty() ? "2048" : options.tap, "tap of InceptionV3")) {
    network().prepare_inference();
    identity_.pipeline = pipeline_.name;
    if (!options.tap.empty() && tap_.depth != InceptionDepth::pool3)
      identity_.pipeline += fmt::format(",tap={}", tap_.name);
  }
  Tensor prepare(const Tensor& image) const override {
    return pipeline_.apply(as_rgb(image).unsqueeze(0), models::FidInception::kSide)[0];
  }

 protected:
  Encoded run(const Tensor& batch) const override {
    // On a CPU the activations of 8 images leave the caches less often than those of 32: 1.1 times as fast.
    constexpr int64_t kCpuBatch = 8;
    if (!batch.is_cpu() || batch.size(0) <= kCpuBatch) return run_whole(batch);
    std::vector<Tensor> features, logits;
    for (const Tensor& part : batch.split(kCpuBatch)) {
      Encoded encoded = run_whole(part);
      features.push_back(encoded.features);
      if (encoded.logits.defined()) logits.push_back(encoded.logits);
    }
    return {at::cat(features), logits.empty() ? Tensor() : at::cat(logits)};
  }

 private:
  Encoded run_whole(const Tensor& batch) const {
    const models::InceptionTaps taps = network()(batch, tap_.depth);
    if (tap_.depth == InceptionDepth::pool3)
      return {to_host(taps.pool3), to_host(network().unbiased_logits(taps.pool3))};
    const Tensor& map = tap_.depth == InceptionDepth::mixed6e ? taps.mixed6e
                        : tap_.depth == InceptionDepth::pool2 ? taps.pool2
                                                              : taps.pool1;
    if (tap_.spatial) return {to_host(map.narrow(1, 0, std::min(kSpatialChannels, map.size(1))).flatten(1)), {}};
    return {to_host(map.mean({2, 3})), {}};
  }

  const InceptionPipeline& pipeline_;
  const Tap& tap_;
};

struct CropName {
  std::string_view name;
  ClipCrop crop;
};
constexpr CropName kCrops[] = {{"transformers", ClipCrop::transformers},
                               {"torchvision", ClipCrop::torchvision},
                               {"square_first", ClipCrop::square_first}};

// Image embeddings of unit length: CMMD, and Frechet distances in CLIP's features.
class ClipImageEncoder : public Published<models::ClipModel> {
 public:
  ClipImageEncoder(const fs::path& component, EncoderIdentity identity, at::Device device,
                   const EncoderOptions& options)
      : Published(component, std::move(identity), device),
        crop_(find_entry(std::span<const CropName>(kCrops),
                         options.pipeline.empty() ? "transformers" : options.pipeline, "image pipeline of CLIP")) {
    identity_.pipeline = crop_.name;
  }
  const models::ClipModel& clip() const { return network(); }
  Tensor prepare(const Tensor& image) const override {
    return clip_input(as_rgb(image), network().config().vision.image_size, crop_.crop);
  }

 protected:
  Encoded run(const Tensor& batch) const override {
    const Tensor e = network().image_features(batch);
    return {to_host(e / e.norm(2, {1}, true)), {}};
  }

 private:
  const CropName& crop_;
};

class Dinov2Encoder : public Published<models::Dinov2Model> {
 public:
  Dinov2Encoder(const fs::path& component, EncoderIdentity identity, at::Device device)
      : Published(component, std::move(identity), device) {
    if (side() < kSide / patch() * patch()) identity_.pipeline = fmt::format("side={}", side());
  }
  Tensor prepare(const Tensor& image) const override { return dinov2_input(as_rgb(image).unsqueeze(0), side())[0]; }

 protected:
  Encoded run(const Tensor& batch) const override { return {to_host(network()(batch).pooled()), {}}; }

 private:
  static constexpr int64_t kSide = 224;  // dgm-eval; the published networks are configured for 518
  int64_t patch() const { return network().config().patch_size; }
  // A network of smaller images (one of ours) sees the size it was made for: enlarging them only costs time.
  int64_t side() const { return std::max(patch(), std::min(kSide, network().config().image_size) / patch() * patch()); }
};

class Vgg16Encoder : public Published<models::Vgg16> {
 public:
  using Published::Published;
  Tensor prepare(const Tensor& image) const override {
    return vgg_input(as_rgb(image).unsqueeze(0), network().config().image_size)[0];
  }

 protected:
  Encoded run(const Tensor& batch) const override { return {to_host(network().fc2(batch)), {}}; }
};

class ClipTextImageEncoder : public TextImageEncoder {
 public:
  ClipTextImageEncoder(const fs::path& component, EncoderIdentity identity, at::Device device,
                       const TextOptions& options)
      : images_(component, std::move(identity), device, {.pipeline = options.pipeline}),
        tokenizer_(text::ClipTokenizer::load(
            fs::exists(component / "vocab.json") ? component : component.parent_path() / "tokenizer")),
        cleaning_(options.cleaning),
        device_(device) {
    const auto& config = images_.clip().config().text;
    if (tokenizer_.vocab_size() > config.vocab_size || tokenizer_.max_length() > config.max_position_embeddings)
      fail<DataError>("{}: a tokenizer of {} tokens and texts of {}; the network reads {} and {}", component.string(),
                      tokenizer_.vocab_size(), tokenizer_.max_length(), config.vocab_size,
                      config.max_position_embeddings);
  }
  Tensor image_embeddings(const Tensor& images) const override { return images_.encode(images).features; }
  Tensor prepare(const Tensor& image) const override { return images_.prepare(image); }
  Tensor embed_prepared(const Tensor& batch) const override { return images_.encode_prepared(batch).features; }
  Tensor text_embeddings(const std::vector<std::string>& texts) const override {
    const NoGrad no_grad;
    std::vector<int64_t> ids;
    for (const std::string& caption : texts) {
      const auto padded = tokenizer_.encode_padded(caption, cleaning_);
      ids.insert(ids.end(), padded.ids.begin(), padded.ids.end());
      truncated_ += padded.truncated;
    }
    const Tensor rows = at::tensor(ids, at::kLong).view({static_cast<int64_t>(texts.size()), tokenizer_.max_length()});
    const Tensor e = images_.clip().text_features(rows.to(device_)).to(at::kCPU, at::kFloat);
    return e / e.norm(2, {1}, true);
  }
  double logit_scale() const override { return std::exp(images_.clip().logit_scale.item<double>()); }
  int64_t truncated() const override { return truncated_; }
  EncoderIdentity identity() const override { return images_.identity(); }

 private:
  ClipImageEncoder images_;
  text::ClipTokenizer tokenizer_;
  text::ClipCleaning cleaning_;
  at::Device device_;
  mutable std::atomic<int64_t> truncated_ = 0;
};

struct PublishedKind {
  std::string_view name;
  std::unique_ptr<ImageEncoder> (*make)(const fs::path&, EncoderIdentity, at::Device, const EncoderOptions&);
};

template <class Encoder>
std::unique_ptr<ImageEncoder> with_options(const fs::path& component, EncoderIdentity identity, at::Device device,
                                           const EncoderOptions& options) {
  return std::make_unique<Encoder>(component, std::move(identity), device, options);
}
template <class Encoder>
std::unique_ptr<ImageEncoder> without_options(const fs::path& component, EncoderIdentity identity, at::Device device,
                                              const EncoderOptions& options) {
  if (!options.pipeline.empty() || !options.tap.empty())
    fail<ConfigError>("{}: this network has one image pipeline and one set of features; leave both unset",
                      component.string());
  return std::make_unique<Encoder>(component, std::move(identity), device);
}

constexpr PublishedKind kKinds[] = {{"pytorch_fid InceptionV3", with_options<InceptionEncoder>},
                                    {"CLIPModel", with_options<ClipImageEncoder>},
                                    {"Dinov2Model", without_options<Dinov2Encoder>},
                                    {"torchvision VGG16", without_options<Vgg16Encoder>}};

}  // namespace

std::vector<std::string_view> published_encoders() {
  std::vector<std::string_view> names;
  for (const PublishedKind& kind : kKinds) names.push_back(kind.name);
  return names;
}

std::unique_ptr<ImageEncoder> make_published_encoder(const std::string& kind, const fs::path& component,
                                                     const EncoderIdentity& identity, at::Device device,
                                                     const EncoderOptions& options) {
  for (const PublishedKind& k : kKinds)
    if (k.name == kind) return k.make(component, identity, device, options);
  return nullptr;
}

std::unique_ptr<TextImageEncoder> make_published_text_encoder(const fs::path& component,
                                                              const EncoderIdentity& identity, at::Device device,
                                                              const TextOptions& options) {
  return std::make_unique<ClipTextImageEncoder>(component, identity, device, options);
}

}  // namespace fewstep::eval
