// What `fewstep model verify` runs for the networks of diffusion.
#include "src/models/label_embedding.h"
#include "src/models/references.h"
#include "src/models/unet2d.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::models {

// sample, and time_emb, add_emb, mid_block on the way. With `target`: mse_loss = mean((sample - target)^2), grad.*.
TensorMap unet2d_reference(nn::Module& module, const TensorMap& inputs, const Json&, bool gradients) {
  const auto& model = dynamic_cast<UNet2DConditionModel&>(module);
  const auto input_if_any = [&](const char* name) {
    const auto it = inputs.find(name);
    return it == inputs.end() ? Tensor() : it->second;
  };
  UNetConditions conditions{.context = input_if_any("encoder_hidden_states"), .pooled = input_if_any("text_embeds"), .numbers = input_if_any("time_ids"), .number_mask = {}};
  // diffusers asks for a context even where no block looks at it.
  if (!model.config().has_cross_attention()) conditions.context = Tensor();
  at::AutoGradMode grad_mode(gradients);
  TensorMap out;
  Tensor sample;
  {
    const nn::TapScope scope({"time_emb", "add_emb", "mid_block"});
    sample = model(reference_input(inputs, "sample"), reference_input(inputs, "timestep"), conditions);
    for (const auto& [name, value] : scope.values()) out[name] = value.detach();
  }
  out["sample"] = sample.detach();
  if (const Tensor target = input_if_any("target"); target.defined()) {
    const Tensor loss = at::mse_loss(sample, target);
    out["mse_loss"] = loss.detach();
    if (gradients) add_gradients(module, loss, &out);
  }
  return out;
}

TensorMap label_embedding_reference(nn::Module& module, const TensorMap& inputs, const Json&, bool) {
  const NoGrad no_grad;
  return {{"context", dynamic_cast<const LabelEmbedding&>(module)(reference_input(inputs, "labels"))}};
}

}  // namespace fewstep::models
