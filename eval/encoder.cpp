#include "eval/encoder.h"

#include <fmt/ranges.h>

#include <atomic>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/hash.h"
#include "src/base/json.h"
#include "src/io/safetensors.h"
#include "src/models/contrastive.h"
#include "src/models/conv_encoder.h"
#include "src/models/model.h"
#include "src/pipelines/pipeline.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"
#include "src/text/bpe.h"

namespace fewstep::eval {
namespace fs = std::filesystem;
namespace {

std::string class_in(const fs::path& folder) {
  return fs::exists(folder / "config.json") ? models::class_name_of(read_json(folder / "config.json")) : "";
}

// A run folder has checkpoints, a model folder model_index.json, a component config.json.
fs::path model_root(const fs::path& folder) {
  if (!fs::is_directory(folder))
    fail<DataError>("{}: no such folder; it should be a training run or a model folder", folder.string());
  return fs::exists(folder / "config.json") ? folder : pipelines::find_model(folder);
}

class ConvImageEncoder : public ImageEncoder {
 public:
  ConvImageEncoder(std::unique_ptr<nn::Module> module, const models::ConvEncoder& encoder, EncoderIdentity identity,
                   at::Device device)
      : module_(std::move(module)), encoder_(encoder), identity_(std::move(identity)), device_(device) {}

  Encoded encode(const Tensor& images) const override { return encode_prepared(prepared(images)); }
  Tensor prepare(const Tensor& image) const override { return prepared(image.unsqueeze(0))[0]; }
  Encoded encode_prepared(const Tensor& batch) const override {
    const NoGrad no_grad;
    const Tensor x = batch.to(device_);
    return {encoder_.features(x).to(at::kCPU, at::kFloat),
            encoder_.config().classes > 0 ? encoder_.logits(x).to(at::kCPU, at::kFloat) : Tensor()};
  }
  Tensor features(const Tensor& images) const override {
    const NoGrad no_grad;
    return encoder_.features(prepared(images).to(device_)).to(at::kCPU, at::kFloat);
  }
  EncoderIdentity identity() const override { return identity_; }

 private:
  Tensor prepared(const Tensor& images) const {
    return prepare_images(images, encoder_.config().in_channels, encoder_.config().image_size);
  }
  std::unique_ptr<nn::Module> module_;  // owns what encoder_ refers to
  const models::ConvEncoder& encoder_;
  EncoderIdentity identity_;
  at::Device device_;
};

class SmallClip : public TextImageEncoder {
 public:
  SmallClip(std::unique_ptr<nn::Module> module, text::BpeTokenizer tokenizer, EncoderIdentity identity,
            at::Device device)
      : module_(std::move(module)),
        model_(dynamic_cast<const models::ContrastiveModel&>(*module_)),
        tokenizer_(std::move(tokenizer)),
        identity_(std::move(identity)),
        device_(device) {}

  Tensor image_embeddings(const Tensor& images) const override {
    const NoGrad no_grad;
    const auto& c = model_.config().image;
    return model_.image_embeddings(prepare_images(images, c.in_channels, c.image_size).to(device_))
        .to(at::kCPU, at::kFloat);
  }
  Tensor text_embeddings(const std::vector<std::string>& texts) const override {
    const NoGrad no_grad;
    const int64_t length = model_.config().context_length;
    Tensor ids = at::full({static_cast<int64_t>(texts.size()), length}, model_.config().pad_token_id, at::kLong);
    auto rows = ids.accessor<int64_t, 2>();
    for (size_t i = 0; i < texts.size(); ++i) {
      const std::vector<int64_t> tokens = tokenizer_.encode(texts[i]);
      truncated_ += static_cast<int64_t>(tokens.size()) > length;
      for (size_t t = 0; t < std::min<size_t>(tokens.size(), static_cast<size_t>(length)); ++t)
        rows[static_cast<int64_t>(i)][static_cast<int64_t>(t)] = tokens[t];
    }
    return model_.text_embeddings(ids.to(device_)).to(at::kCPU, at::kFloat);
  }
  double logit_scale() const override {
    const NoGrad no_grad;
    return model_.scale().item<double>();
  }
  int64_t truncated() const override { return truncated_; }
  EncoderIdentity identity() const override { return identity_; }

 private:
  std::unique_ptr<nn::Module> module_;
  const models::ContrastiveModel& model_;
  text::BpeTokenizer tokenizer_;
  EncoderIdentity identity_;
  at::Device device_;
  mutable std::atomic<int64_t> truncated_ = 0;
};

std::unique_ptr<nn::Module> load_frozen(const fs::path& component, at::Device device) {
  auto module = models::load_model(component);
  module->to(device);
  module->train(false);
  module->requires_grad(false);
  return module;
}

}  // namespace

fs::path find_component(const fs::path& folder, const std::vector<std::string>& classes) {
  const fs::path root = model_root(folder);
  std::vector<fs::path> candidates = {root};
  for (const auto& entry : fs::directory_iterator(root))
    if (entry.is_directory()) candidates.push_back(entry.path());
  std::sort(candidates.begin(), candidates.end());
  std::string found;
  for (const fs::path& candidate : candidates) {
    const std::string name = class_in(candidate);
    if (std::find(classes.begin(), classes.end(), name) != classes.end()) return candidate;
    if (!name.empty())
      found += fmt::format("{}{} in {}", found.empty() ? "" : ", ", name, candidate.filename().string());
  }
  fail<ConfigError>("{}: expected a network of class {}; found {}", folder.string(), fmt::join(classes, " or "),
                    found.empty() ? "none (no config.json)" : found);
}

std::string hash_weights(const fs::path& component) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(component))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  if (files.empty()) fail<DataError>("{}: no .safetensors file", component.string());
  std::sort(files.begin(), files.end());
  if (files.size() == 1) return sha256_file(files[0].string());
  std::string all;
  for (const fs::path& f : files) all += sha256_file(f.string());
  return sha256_hex(all);
}

EncoderIdentity identify(const fs::path& component, const std::string& name) {
  EncoderIdentity identity{.name = name, .sha256 = hash_weights(component)};
  const fs::path file = component / "model.safetensors";
  if (fs::exists(file)) {
    const auto metadata = io::Safetensors(file).metadata();
    if (const auto it = metadata.find("source_sha256"); it != metadata.end()) identity.source_sha256 = it->second;
  }
  return identity;
}

Tensor prepare_images(const Tensor& images, int64_t channels, int64_t size) {
  const NoGrad no_grad;
  const auto [B, C, H, W] = dims<4>(images);
  if (images.scalar_type() != at::kByte)
    fail("images for an encoder must be uint8 in [0, 255], got {}", c10::toString(images.scalar_type()));
  Tensor x = images.to(at::kFloat);
  if (C != channels) {
    if (C == 1)
      x = x.expand({B, channels, H, W});
    else if (channels == 1 && C == 3)  // ITU-R BT.601 luma, as PIL's convert("L")
      x = x.mul(at::tensor({0.299f, 0.587f, 0.114f}).reshape({1, 3, 1, 1})).sum(1, /*keepdim=*/true);
    else
      fail<DataError>("images with {} channels for an encoder trained on {}", C, channels);
  }
  if (H != size || W != size) x = at::_upsample_bicubic2d_aa(x, {size, size}, /*align_corners=*/false).clamp(0, 255);
  return x / 127.5 - 1.0;
}

namespace {
fs::path find_encoder(const fs::path& folder) {
  std::vector<std::string> classes = {"ConvEncoder", "ContrastiveModel"};
  for (const std::string_view kind : published_encoders()) classes.emplace_back(kind);
  return find_component(folder, classes);
}
}  // namespace

bool is_published_encoder(const fs::path& folder) {
  const auto kinds = published_encoders();
  return std::find(kinds.begin(), kinds.end(), class_in(find_encoder(folder))) != kinds.end();
}

std::unique_ptr<ImageEncoder> load_image_encoder(const fs::path& folder, const std::string& name, at::Device device,
                                                 const EncoderOptions& options) {
  const fs::path component = find_encoder(folder);
  const EncoderIdentity identity = identify(component, name);
  if (auto published = make_published_encoder(class_in(component), component, identity, device, options))
    return published;
  if (!options.pipeline.empty() || !options.tap.empty())
    fail<ConfigError>("{}: an encoder trained here has one image pipeline and one set of features; leave both unset",
                      component.string());
  auto module = load_frozen(component, device);
  const models::ConvEncoder* encoder = nullptr;
  if (const auto* conv = dynamic_cast<const models::ConvEncoder*>(module.get())) encoder = conv;
  if (const auto* clip = dynamic_cast<const models::ContrastiveModel*>(module.get())) encoder = &clip->image();
  FEW_CHECK(encoder, "{}: built as neither ConvEncoder nor ContrastiveModel", component.string());
  return std::make_unique<ConvImageEncoder>(std::move(module), *encoder, identity, device);
}

std::unique_ptr<TextImageEncoder> load_text_image_encoder(const fs::path& folder, const std::string& name,
                                                          at::Device device, const TextOptions& options) {
  const fs::path component = find_component(folder, {"ContrastiveModel", "CLIPModel"});
  const EncoderIdentity identity = identify(component, name);
  if (class_in(component) == "CLIPModel") return make_published_text_encoder(component, identity, device, options);
  const fs::path tokenizer = component.parent_path() / "tokenizer";
  if (!fs::is_directory(tokenizer))
    fail<DataError>("{}: no tokenizer folder beside the network; give the whole model folder", component.string());
  return std::make_unique<SmallClip>(load_frozen(component, device), text::BpeTokenizer::load(tokenizer), identity,
                                     device);
}

}  // namespace fewstep::eval
