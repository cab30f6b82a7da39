#include "trainers/losses.h"

#include "src/tensor/ops.h"

namespace fewstep {

Tensor cross_entropy_sum(const Tensor& logits, const Tensor& targets) {
  const Tensor wide = logits.scalar_type() == at::kDouble ? logits : logits.to(at::kFloat);
  return at::cross_entropy_loss(wide.flatten(0, -2), targets.flatten(), {}, at::Reduction::Sum);
}

Tensor correct_count(const Tensor& logits, const Tensor& targets) { return logits.argmax(-1).eq(targets).sum(); }

Tensor hinge_critic(const Tensor& real_logits, const Tensor& fake_logits) {
  return at::relu(1 - real_logits).mean() + at::relu(1 + fake_logits).mean();
}

Tensor hinge_generator(const Tensor& fake_logits) { return -fake_logits.mean(); }

Tensor contrastive_sum(const Tensor& images, const Tensor& texts, const Tensor& scale, const Tensor& match,
                       const Tensor& image_weight) {
  const Tensor logits = scale * at::matmul(images, texts.t());  // [B, B]
  const Tensor by_image = -(at::log_softmax(logits, 1) * match).sum(1) / match.sum(1);
  const Tensor by_text = -(at::log_softmax(logits, 0) * match).sum(0) / match.sum(0);
  return 0.5 * ((by_image * image_weight).sum() + by_text.sum());
}

}  // namespace fewstep
