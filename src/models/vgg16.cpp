#include "src/models/vgg16.h"

#include <nlohmann/json.hpp>

#include "src/models/json_fields.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::models {
namespace {

// torchvision's nn.Sequential: the places of the convolutions, and the stage each belongs to.
struct Place {
  const char* name;
  int64_t out;
  size_t stage;
};
constexpr Place kConvolutions[] = {{"0", 64, 0},   {"2", 64, 0},   {"5", 128, 1},  {"7", 128, 1},  {"10", 256, 2},
                                   {"12", 256, 2}, {"14", 256, 2}, {"17", 512, 3}, {"19", 512, 3}, {"21", 512, 3},
                                   {"24", 512, 4}, {"26", 512, 4}, {"28", 512, 4}};
constexpr int64_t kStages = 5, kHidden = 4096;

}  // namespace

struct Vgg16::Convolutions : nn::Module {
  explicit Convolutions(int64_t divisor) {
    int64_t in = 3;
    for (const Place& place : kConvolutions) {
      layers.push_back(std::make_unique<nn::Conv2d>(in, place.out / divisor));
      child(place.name, *layers.back());
      in = place.out / divisor;
    }
  }
  std::vector<std::unique_ptr<nn::Conv2d>> layers;
};

struct Vgg16::Classifier : nn::Module {
  explicit Classifier(const Vgg16Config& c)
      : fc1(512 / c.channel_divisor * (c.image_size >> kStages) * (c.image_size >> kStages),
            kHidden / c.channel_divisor),
        fc2(kHidden / c.channel_divisor, kHidden / c.channel_divisor),
        fc3(kHidden / c.channel_divisor, c.num_classes) {
    child("0", fc1), child("3", fc2), child("6", fc3);
  }
  nn::Linear fc1, fc2, fc3;
};

Vgg16Config Vgg16Config::from_json(const Json& json, std::string_view where) {
  const JsonFields fields(json, where);
  Vgg16Config c;
  fields.get("channel_divisor", c.channel_divisor);
  fields.get("num_classes", c.num_classes);
  fields.get("image_size", c.image_size);
  if (c.channel_divisor < 1 || 64 % c.channel_divisor != 0)
    fail<ConfigError>("{}: channel_divisor {} must divide 64", where, c.channel_divisor);
  if (c.num_classes < 1 || c.image_size < 32 || c.image_size % 32 != 0)
    fail<ConfigError>("{}: image_size {} must be a multiple of 32", where, c.image_size);
  return c;
}

Json Vgg16Config::to_json() const {
  return {{"architecture", "torchvision VGG16"},
          {"channel_divisor", channel_divisor},
          {"num_classes", num_classes},
          {"image_size", image_size}};
}

Vgg16::Vgg16(const Vgg16Config& config)
    : config_(config),
      features_(std::make_unique<Convolutions>(config.channel_divisor)),
      classifier_(std::make_unique<Classifier>(config)) {
  child("features", *features_), child("classifier", *classifier_);
}
Vgg16::~Vgg16() = default;

std::vector<Tensor> Vgg16::stages(const Tensor& images) const {
  expect_shape(images, {-1, 3, -1, -1}, "images of VGG16");
  std::vector<Tensor> out;
  Tensor x = images;
  for (size_t i = 0; i < std::size(kConvolutions); ++i) {
    if (kConvolutions[i].stage != out.size()) {
      out.push_back(x);
      x = at::max_pool2d(x, {2, 2}, {2, 2});
    }
    x = at::relu((*features_->layers[i])(x));
  }
  out.push_back(x);
  return out;
}

Tensor Vgg16::fc2(const Tensor& images) const {
  expect_shape(images, {-1, 3, config_.image_size, config_.image_size}, "images of VGG16's classifier");
  const Tensor x = at::max_pool2d(stages(images).back(), {2, 2}, {2, 2}).flatten(1);
  return at::relu(classifier_->fc2(at::relu(classifier_->fc1(x))));
}

Tensor Vgg16::logits(const Tensor& images) const { return classifier_->fc3(fc2(images)); }

}  // namespace fewstep::models
