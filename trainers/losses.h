// Losses as pure functions. Each returns a float scalar; sums are left to the caller where counts are global.
#pragma once
#include <cstdint>

#include "src/tensor/fwd.h"

namespace fewstep {

// Sum over positions of the cross-entropy of logits [..., V] against int64 targets [...], in float32 (float64 if given).
Tensor cross_entropy_sum(const Tensor& logits, const Tensor& targets);
// Number of positions where argmax equals the target, int64 scalar.
Tensor correct_count(const Tensor& logits, const Tensor& targets);
// Hinge GAN losses (Lim & Ye 2017): critic mean(relu(1 - D(real))) + mean(relu(1 + D(fake))), generator -mean(D(fake)).
Tensor hinge_critic(const Tensor& real_logits, const Tensor& fake_logits);
Tensor hinge_generator(const Tensor& fake_logits);
// Symmetric InfoNCE (Radford et al. 2021, fig. 3), sum over rows, with several positives a row: images and texts [B, D] are
// L2-normalised, `match` float [B, B] marks the texts that fit an image; a row's loss is the mean over its positives.
// `image_weight` [B]: 0 leaves an image's row out (its caption says nothing about it).
Tensor contrastive_sum(const Tensor& images, const Tensor& texts, const Tensor& scale, const Tensor& match,
                       const Tensor& image_weight);

}  // namespace fewstep
