// Power by spatial frequency: does a set of images have the detail that real ones have, no less and no more?
#pragma once
#include <memory>
#include <string_view>

#include "eval/metrics.h"

namespace fewstep::eval {

struct FrequencyBand {
  std::string_view name;  // in cycles a pixel, radial
  double low, high;       // low < f <= high
};
// Octaves down from the Nyquist frequency; the last one is what an image of half the size cannot hold.
std::span<const FrequencyBand> frequency_bands();

// uint8 [B, C, H, W] -> float64 [B, bands]: mean over the band's frequencies of |DFT|^2 / (H W)^2 of the channels' mean
// in [0, 1]. Constant images have none: frequency zero is in no band.
Tensor band_power(const Tensor& images);

// log_power[band]: log10 of mean power over that of the real reference images, with a delta-method interval of the set's
// side; log_power_error: mean over bands of its absolute value (0: like real images; more power is not better).
std::unique_ptr<Metric> make_band_power(const MetricContext& context);

}  // namespace fewstep::eval
