#include "src/decoding/guidance.h"

#include "src/tensor/ops.h"

namespace fewstep::decoding {

Tensor with_unconditional(const ImageModel& model, const Tensor& prompts, bool guided) {
  return guided ? at::cat({prompts, model.unconditional_prompt().unsqueeze(0).expand_as(prompts)}) : prompts;
}

Tensor guide(const Tensor& logits, double guidance) {
  if (guidance == 1) return logits;
  const int64_t B = logits.size(0) / 2;
  const Tensor c = logits.narrow(0, 0, B), u = logits.narrow(0, B, B);
  return (c - u).mul_(guidance).add_(u);
}

Tensor embed_codes(const ImageModel& model, const Tensor& codes, bool guided) {
  const Tensor e = model.table().index_select(0, codes.flatten()).view({codes.size(0), codes.size(1), -1});
  return guided ? at::cat({e, e}) : e;
}

}  // namespace fewstep::decoding
