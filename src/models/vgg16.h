// VGG16 (Simonyan and Zisserman 2014, arXiv 1409.1556) with torchvision's names: the features of precision and recall
// (Kynkaanniemi et al. 2019), and perceptual losses.
#pragma once
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "src/base/json.h"
#include "src/nn/layers.h"

namespace fewstep::models {

struct Vgg16Config {
  int64_t channel_divisor = 1;  // slim networks for tests
  int64_t num_classes = 1000;
  int64_t image_size = 224;  // of the classifier; the convolutions take any size
  static Vgg16Config from_json(const Json& json, std::string_view where);
  Json to_json() const;
};

class Vgg16 : public nn::Module {
 public:
  explicit Vgg16(const Vgg16Config& config);
  ~Vgg16() override;
  const Vgg16Config& config() const { return config_; }
  // Activations before each of the five poolings (relu1_2, relu2_2, relu3_3, relu4_3, relu5_3), from x [B, 3, H, W]
  // normalised.
  std::vector<Tensor> stages(const Tensor& x) const;
  Tensor fc2(const Tensor& x) const;     // [B, 3, S, S] -> [B, 4096], after its ReLU
  Tensor logits(const Tensor& x) const;  // [B, num_classes]

 private:
  struct Convolutions;
  struct Classifier;
  Vgg16Config config_;
  std::unique_ptr<Convolutions> features_;
  std::unique_ptr<Classifier> classifier_;
};

}  // namespace fewstep::models
