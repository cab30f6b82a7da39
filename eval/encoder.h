// The networks that judge, behind two small interfaces, each with the identity its numbers are named by.
#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "eval/names.h"
#include "src/tensor/tensor.h"
#include "src/text/clip_tokenizer.h"

namespace fewstep::eval {

struct Encoded {
  Tensor features;  // float32 [B, D]
  Tensor logits;    // float32 [B, K]; undefined when the network has no class head
};
class ImageEncoder {
 public:
  virtual ~ImageEncoder() = default;
  virtual Encoded encode(const Tensor& images) const = 0;  // uint8 [B, C, H, W]
  virtual Tensor features(const Tensor& images) const { return encode(images).features; }
  // The same in two steps, for images of different sizes: prepare() each (any thread), stack, encode_prepared().
  virtual Tensor prepare(const Tensor& image) const { return image; }  // uint8 [C, H, W] -> one row of the batch
  virtual Encoded encode_prepared(const Tensor& batch) const { return encode(batch); }
  virtual EncoderIdentity identity() const = 0;
};
class TextImageEncoder {
 public:
  virtual ~TextImageEncoder() = default;
  virtual Tensor image_embeddings(const Tensor& images) const = 0;  // uint8 -> [B, E], unit length
  // In two steps, for images of different sizes, as ImageEncoder's.
  virtual Tensor prepare(const Tensor& image) const { return image; }
  virtual Tensor embed_prepared(const Tensor& batch) const { return image_embeddings(batch); }
  virtual Tensor text_embeddings(const std::vector<std::string>& texts) const = 0;  // [B, E], unit length
  virtual double logit_scale() const = 0;                                // exp(logit_scale)
  virtual int64_t truncated() const = 0;  // texts so far that were too long and were cut
  virtual EncoderIdentity identity() const = 0;
};

// The image side alone.
class ImageTower : public ImageEncoder {
 public:
  explicit ImageTower(const TextImageEncoder& model) : model_(model) {}
  Encoded encode(const Tensor& images) const override { return {model_.image_embeddings(images), {}}; }
  Tensor prepare(const Tensor& image) const override { return model_.prepare(image); }
  Encoded encode_prepared(const Tensor& batch) const override { return {model_.embed_prepared(batch), {}}; }
  EncoderIdentity identity() const override { return model_.identity(); }

 private:
  const TextImageEncoder& model_;
};

// How a published network is used; encoders trained in the framework have one way only and refuse what is set here.
struct EncoderOptions {
  std::string pipeline = {};  // InceptionV3: a name of inception_pipelines(), default clean; CLIP: transformers
                              // (default), torchvision, square_first
  std::string tap = {};  // InceptionV3: 2048 (default), 768, 192, 64, spatial (sFID); VGG16: fc2
};

struct TextOptions {          // of CLIPModel
  std::string pipeline = {};  // as EncoderOptions::pipeline
  text::ClipCleaning cleaning = text::ClipCleaning::huggingface;
};

// `folder`: a training run, a model folder, or the folder of the network itself (config.json + safetensors).
// ConvEncoder, the image tower of ContrastiveModel, or a published network: InceptionV3 of FID, CLIPModel, Dinov2Model,
// VGG16. `name` stands in metric names. ConfigError lists what was found instead.
std::unique_ptr<ImageEncoder> load_image_encoder(const std::filesystem::path& folder, const std::string& name,
                                                 at::Device device, const EncoderOptions& options = {});
std::vector<std::string_view> published_encoders();  // class names in config.json
// False for an encoder trained here. ConfigError when there is no encoder in the folder.
bool is_published_encoder(const std::filesystem::path& folder);
// ContrastiveModel, or CLIPModel with its tokenizer (in the same folder, or in tokenizer/ beside it).
std::unique_ptr<TextImageEncoder> load_text_image_encoder(const std::filesystem::path& folder, const std::string& name,
                                                          at::Device device, const TextOptions& options = {});

// A published network (published_encoders.cpp), or nullptr when `kind` is none.
std::unique_ptr<ImageEncoder> make_published_encoder(const std::string& kind, const std::filesystem::path& component,
                                                     const EncoderIdentity& identity, at::Device device,
                                                     const EncoderOptions& options);

std::unique_ptr<TextImageEncoder> make_published_text_encoder(const std::filesystem::path& component,
                                                              const EncoderIdentity& identity, at::Device device,
                                                              const TextOptions& options);

// The component folder below `folder` whose config.json names one of `classes`; shared with the VQ lookup of the
// runner.
std::filesystem::path find_component(const std::filesystem::path& folder, const std::vector<std::string>& classes);
// Hash of the weights, and of the download they were converted from where the file says so (tools/convert_weights.py).
EncoderIdentity identify(const std::filesystem::path& component, const std::string& name);
// SHA-256 of the one weight file, or of the shards' hashes in name order.
std::string hash_weights(const std::filesystem::path& component);
// uint8 [B, C, H, W] -> float [-1, 1] with the channels and size the network was trained on (grey <-> RGB, antialiased
// resize); the same preparation for real and generated images.
Tensor prepare_images(const Tensor& images, int64_t channels, int64_t size);

}  // namespace fewstep::eval
