// Frechet distance of patches at full resolution (patch-FID: Lin et al. 2024, SDXL-Lightning; Yin et al. 2024, DMD2):
// what resizing to 299 hides. `fewstep eval patch-fid A B`.
#pragma once
#include <cstdint>
#include <filesystem>

#include "eval/encoder.h"
#include "src/base/json.h"

namespace fewstep::eval {

struct PatchOptions {
  int64_t side = 0;         // of a patch; 0: the side the network reads, so that nothing is resized
  bool grid = false;        // every patch that fits, side by side from the top left, instead of the central one
  bool skip_small = false;  // leave out images with a side below that of a patch, and count them
  bool skip_unreadable = false;
};

// Cuts patches before an encoder: rows of features become [B, P, D], P patches of each image.
class PatchEncoder : public ImageEncoder {
 public:
  PatchEncoder(const ImageEncoder& inner, const PatchOptions& options);
  // uint8 [C, H, W] -> [P, ...], P rows of the inner network's batch. DataError for a side below that of a patch.
  Tensor prepare(const Tensor& image) const override;
  Encoded encode_prepared(const Tensor& batch) const override;  // [B, P, ...] -> features [B, P, D], no logits
  Encoded encode(const Tensor& images) const override;          // uint8 [B, C, H, W], of one size
  EncoderIdentity identity() const override { return inner_.identity(); }
  int64_t side() const { return side_; }

 private:
  const ImageEncoder& inner_;
  int64_t side_;
  bool grid_;
};

// The side of what the network reads, found by preparing an image.
int64_t network_side(const ImageEncoder& encoder);

// A real, B judged; both folders. {"metrics": {"patch_FD[name@hash,...,crop=299]" or ",grid=16]": ...}, "encoder",
// "side", "a", "b": {"path", "images", "n" (patches), "small"}}. The interval's groups are images. DataError: images
// that are too small (how many of how many, the first, why), unless skipped; fewer than two patches of a side.
Json patch_distance(const std::filesystem::path& a, const std::filesystem::path& b, const ImageEncoder& encoder,
                    const PatchOptions& options = {});

}  // namespace fewstep::eval
