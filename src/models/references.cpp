#include "src/models/references.h"

#include "src/base/error.h"
#include "src/models/contrastive.h"
#include "src/models/llama.h"
#include "src/models/vq_model.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::models {
namespace {

Tensor decode_one_by_one(const LlamaForCausalLM& model, const Tensor& ids) {
  const NoGrad no_grad;
  KvCache cache = model.make_cache(ids.size(0), ids.size(1));
  std::vector<Tensor> steps;
  for (int64_t t = 0; t < ids.size(1); ++t)
    steps.push_back(model.logits(model.hidden(model.embed(ids.narrow(1, t, 1)), {.positions = {}, .mask = {}, .cache = &cache})));
  return at::cat(steps, 1);
}

}  // namespace

const Tensor& reference_input(const TensorMap& inputs, const std::string& name) {
  const auto it = inputs.find(name);
  if (it == inputs.end()) fail<DataError>("io.safetensors: 'input.{}' is missing", name);
  return it->second;
}

void add_gradients(nn::Module& module, const Tensor& loss, TensorMap* out) {
  NamedTensors parameters = module.parameters();
  for (NamedTensor& p : parameters) p.tensor.mutable_grad() = Tensor();
  loss.backward();
  Tensor squares = at::zeros({}, at::kDouble);
  for (NamedTensor& p : parameters) {
    const Tensor grad = p.tensor.grad().defined() ? p.tensor.grad() : at::zeros_like(p.tensor);
    squares = squares + grad.to(at::kDouble).square().sum();
    (*out)["grad." + p.name] = grad.detach().clone();
    p.tensor.mutable_grad() = Tensor();
  }
  (*out)["grad_global_norm"] = squares.sqrt().to(at::kFloat);
}

// logits; loss = mean cross-entropy of logits[:, :-1] against ids[:, 1:]; grad.*; logits_cached: one token at a time.
TensorMap llama_reference(nn::Module& module, const TensorMap& inputs, const Json&, bool gradients) {
  auto& model = dynamic_cast<LlamaForCausalLM&>(module);
  const Tensor& ids = reference_input(inputs, "input_ids");
  const int64_t L = ids.size(1);
  at::AutoGradMode grad_mode(gradients);
  TensorMap out;
  const Tensor hidden = model.hidden(model.embed(ids));
  out["logits"] = model.logits(hidden).detach();
  if (L > 1) {
    const Tensor loss = model.token_loss(hidden.narrow(1, 0, L - 1), ids.narrow(1, 1, L - 1)).mean();
    out["loss"] = loss.detach();
    if (gradients) add_gradients(module, loss, &out);
  }
  model.prepare_inference();  // as the samplers decode
  out["logits_cached"] = decode_one_by_one(model, ids);
  model.release_inference();
  return out;
}

// latents before quantisation, indices, codes, sample = decoded codes; loss = mean of squares of `decoded` (the decoder
// on unquantised latents) for gradients of everything but the codebook.
TensorMap vq_reference(nn::Module& module, const TensorMap& inputs, const Json&, bool gradients) {
  auto& model = dynamic_cast<VQModel&>(module);
  const Tensor& images = reference_input(inputs, "sample");
  at::AutoGradMode grad_mode(gradients);
  TensorMap out;
  const Tensor latents = model.encode(images);
  const Quantized quantized = model.quantize(latents.detach());
  const Tensor decoded = model.decode(latents);
  out["latents"] = latents.detach();
  out["indices"] = quantized.indices;
  out["codes"] = quantized.latents;
  out["decoded"] = decoded.detach();
  out["sample"] = model.decode(quantized.latents).detach();
  const Tensor loss = decoded.square().mean();
  out["loss"] = loss.detach();
  if (gradients) add_gradients(module, loss, &out);
  return out;
}

TensorMap conv_encoder_reference(nn::Module& module, const TensorMap& inputs, const Json&, bool) {
  const NoGrad no_grad;
  auto& model = dynamic_cast<ConvEncoder&>(module);
  const ConvEncoded encoded = model(reference_input(inputs, "images"));
  TensorMap out{{"embedding", encoded.embedding}, {"raw", encoded.raw}, {"features", model.features(reference_input(inputs, "images"))}};
  if (encoded.logits.defined()) out["logits"] = encoded.logits;
  if (encoded.auxiliary.defined()) out["auxiliary"] = encoded.auxiliary;
  return out;
}

TensorMap contrastive_reference(nn::Module& module, const TensorMap& inputs, const Json&, bool) {
  const NoGrad no_grad;
  auto& model = dynamic_cast<ContrastiveModel&>(module);
  return {{"image_embeddings", model.image_embeddings(reference_input(inputs, "images"))},
          {"text_embeddings", model.text_embeddings(reference_input(inputs, "input_ids"))},
          {"scale", model.scale()}};
}

}  // namespace fewstep::models
