// A loss on decoded pixels for a student that makes latents, in two stages: first the loss is differentiated down to the latents
// and the graph of decoder and discriminator freed, then that gradient is put into the student's graph like any other
// pseudo-target (x0 - g). The gradients are the same. Memory: with latents made under NoGrad (the student runs again for its own
// graph) the peak is the larger of the two graphs instead of their sum; a student's graph that is held meanwhile counts in full.
// decode_part splits the rest: the discriminator's graph, then the decoder's of one part, never both.
#pragma once
#include <cstdint>
#include <functional>

#include "src/config/visitor.h"
#include "src/tensor/tensor.h"

namespace fewstep {

struct LatentCropConfig {
  int64_t size = 0;  // side of the window in latents; 0: the whole latent
  int64_t halo = 8;  // latents decoded around it and cut away: the decoder's convolutions see beyond the window
};
void describe(config::Visitor& v, LatentCropConfig& c);

struct CropKey {
  uint64_t seed = 0;
  int64_t step = 0;
};
// Windows of one size, one a sample, uniform over the places where they fit: they and the halo, which stops at the borders.
struct LatentWindows {
  Tensor inner_y, inner_x;  // int64 [B]: first row and column of the window
  Tensor outer_y, outer_x;  // the same with halo
  int64_t inner_height = 0, inner_width = 0, outer_height = 0, outer_width = 0;
};
// ids: int64 [B]. ConfigError when a window is larger than the latent ("discriminator crop").
LatentWindows latent_windows(const LatentCropConfig& c, const Tensor& ids, int64_t height, int64_t width, const CropKey& key);
Tensor take_windows(const Tensor& latents, const LatentWindows& w);      // [B, C, h, w] with halo -> [B, C, outer]
Tensor trim_to_windows(const Tensor& images, const LatentWindows& w);    // decoded -> its pixels without halo
// Pixel windows of the same place in full images of the real side: `factor` pixels a latent.
Tensor take_pixel_windows(const Tensor& images, const LatentWindows& w, int64_t factor);

struct TwoStageOptions {
  LatentCropConfig crop = {};
  CropKey key = {};
  int64_t decode_part = 0;  // samples decoded at a time: another pass of the decoder, one part's graph at a time; 0: all
};
struct PixelGradient {
  Tensor gradient;  // d loss / d latents, detached, as latents: zero outside the decoded windows
  Tensor loss;      // detached scalar
  Tensor images;    // detached: what the critic's turn may use again
};
using DecodeLatents = std::function<Tensor(const Tensor& latents)>;  // every sample for itself
using PixelLoss = std::function<Tensor(const Tensor& images)>;       // -> scalar, of all samples
// latents: [B, C, h, w], with or without a graph (it is not touched); ids: int64 [B], for the windows. Works under NoGrad, too.
// The decoder must be deterministic: with decode_part it runs twice. Its parameters and the discriminator's get no gradient.
PixelGradient pixel_gradient(const Tensor& latents, const Tensor& ids, const DecodeLatents& decode, const PixelLoss& loss,
                             const TwoStageOptions& options = {});

// A scalar whose gradient with respect to x0 is exactly `gradient`: sum(x0 sg(g)). It is what 1/2 |x0 - sg(x0 - g)|^2 gives, but
// without the cancellation in x0 - (x0 - g) for small g. Its value means nothing.
Tensor injected_gradient(const Tensor& x0, const Tensor& gradient);
Tensor pseudo_target(const Tensor& x0, const Tensor& gradient);  // sg(x0 - g), to add up with other pseudo-targets

}  // namespace fewstep
