// How well images come back from an autoencoder: PSNR, SSIM, perceptual distance, and the Frechet distance to the very images
// that were reconstructed (SDXL, arXiv 2307.01952, table 3). Measured on sets whose images have an original (reconstructions,
// half_resolution); nothing on others.
#pragma once
#include <memory>

#include "eval/metrics.h"

namespace fewstep::eval {

// "PSNR", dB: the mean over images of their own PSNR, equal images (infinite) left out and counted in the note.
std::unique_ptr<Metric> make_psnr(const MetricContext& context);
// "SSIM", see pair_metrics.h.
std::unique_ptr<Metric> make_ssim(const MetricContext& context);
// LPIPS where `context.perceptual` is the folder of VGG16 ("LPIPS[vgg16]" for the published weights), else the same distance in
// the stages of a ConvEncoder or ContrastiveModel trained here, all weights 1: "perceptual[NAME@hash]".
std::unique_ptr<Metric> make_perceptual(const MetricContext& context);
EncoderIdentity perceptual_identity(const MetricContext& context);
// "rFD[judge@hash]" ("rFID" for FID's network): reconstructions against their originals, not against other real images as FD.
std::unique_ptr<Metric> make_reconstruction_fd(const MetricContext& context);

}  // namespace fewstep::eval
