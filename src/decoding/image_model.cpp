#include "src/decoding/image_model.h"

#include "src/tensor/ops.h"

namespace fewstep::decoding {

Tensor LlamaImageModel::forced() const { return layout_.forced_codes().to(model_.embedding_weight().device()); }

Tensor LlamaImageModel::table() const { return model_.embedding_weight().narrow(0, layout_.image_id(0), codes()); }

Tensor LlamaImageModel::unconditional_prompt() const {
  return at::tensor(layout_.unconditional_prompt(), at::kLong).to(model_.embedding_weight().device());
}

}  // namespace fewstep::decoding
