// Graded corruptions of images, the side task of the evaluation encoders: features that must tell how blurred, noisy,
// blocky or incoherent a picture is cannot be blind to texture, as a plain classifier's are.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "datasets/dataset.h"

namespace fewstep {

// Other images of the data set, by class: what incoherent pictures are made of. Fixed for a run, so that a sample's
// corruption depends on (seed, step, id) only and not on who shares its batch.
class PartnerPool {
 public:
  PartnerPool(const Dataset& dataset, int64_t count, uint64_t seed);
  Tensor any(const Tensor& uniforms) const;                             // [N] in [0, 1) -> float images [N, C, H, W]
  Tensor same_class(const Tensor& labels, const Tensor& uniforms) const;  // any class where the label is unknown

 private:
  Tensor images_;                                // float [M, C, H, W]
  std::vector<std::vector<int64_t>> by_class_;
};

const std::vector<std::string>& corruption_names();  // the columns of `levels`

struct Corrupted {
  Tensor images;   // float [B, C, H, W] in [-1, 1]
  Tensor levels;   // float [B, names]: 0 untouched, else 0.2 ... 1; one column a row at most
  Tensor content;  // float [B]: 1 where the class can still be seen, 0 where cells of many images were mixed
};
// A share `clean` of the rows stays untouched, the others get one corruption of random strength each.
Corrupted corrupt(const Batch& batch, const PartnerPool& pool, double clean, uint64_t seed, int64_t step);

}  // namespace fewstep
