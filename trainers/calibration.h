// Encoders for evaluation save the scale of their features on real images, so that Frechet distances are comparable.
#pragma once
#include <cstdint>

#include "src/models/conv_encoder.h"
#include "trainers/trainer.h"

namespace fewstep {

// Calibrates on the first `count` clean images of the held-out split (of train, without one).
void calibrate_features(models::ConvEncoder& encoder, const TrainContext& context, int64_t count = 4096);

}  // namespace fewstep
