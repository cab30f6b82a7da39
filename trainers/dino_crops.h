// Multi-crop views of DINO (Caron et al. 2021, arXiv 2104.14294, section 3.1 and appendix E) for small images, grey or RGB: two
// global crops and k local ones, each resized, mirrored, jittered and blurred by draws that belong to (seed, step, sample id).
#pragma once
#include <cstdint>

#include "src/config/visitor.h"
#include "src/tensor/rng.h"
#include "src/tensor/tensor.h"

namespace fewstep {

struct DinoCropConfig {
  int64_t locals = 4;                                     // beside the two global crops
  int64_t global_size = 0, local_size = 16;               // pixels; 0: the images' own
  double global_min_area = 0.4, global_max_area = 1.0;    // shares of the image's area
  double local_min_area = 0.15, local_max_area = 0.4;
  double flip = 0.5;                                      // probabilities
  double jitter = 0.8;
  double brightness = 0.4, contrast = 0.4;                // factors from [1 - x, 1 + x]
  double first_blur = 1.0, second_blur = 0.1, local_blur = 0.5;  // of the first global crop, the second, a local one
  double max_sigma = 0.6;                                 // pixels; from 0.1
};
void describe(config::Visitor& v, DinoCropConfig& c);

// What the draws are keyed by: no view depends on the batch it is made in.
struct ViewKeys {
  Tensor ids;                                             // int64 [B]
  uint64_t seed = 0;
  int64_t step = 0;
  Stream stream = Stream::augment;
};
struct DinoViews {
  Tensor globals;                                         // [2 B, 3, S, S], normalised; row v B + b is view v of image b
  Tensor locals;                                          // [k B, 3, s, s]; undefined without local crops
};
// images: float [B, 1 or 3, H, W] in [-1, 1].
DinoViews make_views(const Tensor& images, const ViewKeys& keys, const DinoCropConfig& config);

// [-1, 1], 1 or 3 channels -> RGB with ImageNet's mean and deviation, as every DINOv2 folder is read.
Tensor dino_input(const Tensor& images);

// The parts, on images in [0, 1].
// u [B, 4] in [0, 1) -> [B, 4] left, top, width, height in pixels: area uniform within the shares, aspect log-uniform within
// 3/4 .. 4/3; sides that do not fit are cut to the image (torchvision draws again instead).
Tensor crop_boxes(const Tensor& u, int64_t height, int64_t width, double min_area, double max_area);
// Each image's box to side x side, bilinear at pixel centres, mirrored where `flip` [B] is true.
Tensor resize_boxes(const Tensor& images, const Tensor& boxes, const Tensor& flip, int64_t side);
// x brightness [B], then contrast [B] about each image's mean; clamped to [0, 1].
Tensor jitter_images(const Tensor& images, const Tensor& brightness, const Tensor& contrast);
// Gaussian of 5 x 5 pixels with each image's sigma [B], edges repeated; sigma 0 leaves an image as it is.
Tensor blur_images(const Tensor& images, const Tensor& sigma);

}  // namespace fewstep
