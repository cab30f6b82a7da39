// Named image pipelines: what turns a photograph's bytes into the input of a published network. They differ between
// tools, and numbers of different pipelines must not be compared: results carry the name.
//
//   clean        clean-fid's default, GigaGAN, DMD2: bicubic (a = -0.5) with antialias on floats, clipped to [0, 255],
//   not
//                rounded; (x - 128) / 128
//   pytorch-fid  bilinear, half-pixel centres, no antialias, on [0, 1]; 2 x - 1
//   tf-legacy    torch-fidelity and TTUR: TensorFlow 1's bilinear, which has no half-pixel offset; (x - 128) / 128
//   torchmetrics bilinear with antialias; (x - 128) / 128
#pragma once
#include <cstdint>
#include <span>
#include <string_view>

#include "src/tensor/fwd.h"

namespace fewstep::eval {

struct InceptionPipeline {
  std::string_view name, meaning;
  Tensor (*apply)(const Tensor& images, int64_t side);  // uint8 [B, 3, H, W] -> float [B, 3, side, side]
};
std::span<const InceptionPipeline> inception_pipelines();
const InceptionPipeline& find_inception_pipeline(std::string_view name);  // ConfigError with the known names

// TensorFlow 1's resize_bilinear without align_corners: source = target * in / out. float [B, C, H, W].
Tensor resize_tensorflow1(const Tensor& x, int64_t height, int64_t width);
// Pillow's antialiased bicubic (a = -0.5) of every channel as a float image, clipped to [0, 255]. uint8 -> float32.
Tensor resize_clean(const Tensor& images, int64_t height, int64_t width);

// VGG16 as torch-fidelity feeds it: TensorFlow 1's bilinear to `side`, then ImageNet's mean and deviation.
Tensor vgg_input(const Tensor& images, int64_t side);
// DINOv2 as dgm-eval feeds it: clean bicubic to `side`, then ImageNet's mean and deviation.
Tensor dinov2_input(const Tensor& images, int64_t side);

// Which pixel the central crop starts at, for an odd margin: OpenAI's and open_clip's torchvision rounds half to even,
// transformers and CMMD round down.
enum class ClipCrop { torchvision, transformers, square_first };  // square_first: CMMD crops to a square, then resizes
// One image, uint8 [3, H, W] -> float [3, side, side]: shorter side to `side` by Pillow's bicubic on bytes, central
// crop, CLIP's mean and deviation.
Tensor clip_input(const Tensor& image, int64_t side, ClipCrop crop);
// torchvision's CenterCrop: odd margins are halved with halves to even. [..., H, W], both at least `side`.
Tensor crop_centre(const Tensor& image, int64_t side);
// The central square, then Pillow's Lanczos on bytes: GigaGAN's and DMD2's step before everything else. uint8 -> uint8.
Tensor crop_and_resize_lanczos(const Tensor& image, int64_t side);

}  // namespace fewstep::eval
