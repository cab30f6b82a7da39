// `fewstep model verify` of the networks of evaluation: outputs by the names of golden files.
#include "src/base/error.h"
#include "src/models/clip.h"
#include "src/models/dinov2.h"
#include "src/models/fid_inception.h"
#include "src/models/references.h"
#include "src/models/vgg16.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::models {
namespace {

Tensor unit_length(const Tensor& x) { return x / x.norm(2, {-1}, true); }

}  // namespace

TensorMap clip_reference(nn::Module& module, const TensorMap& inputs, const Json&, bool) {
  const NoGrad no_grad;
  const auto& model = dynamic_cast<const ClipModel&>(module);
  TensorMap out;
  const Tensor image = model.image_features(reference_input(inputs, "pixel_values")),
               text = model.text_features(reference_input(inputs, "input_ids"));
  const Tensor i = unit_length(image), t = unit_length(text);
  out["image_features_raw"] = image, out["text_features_raw"] = text;
  out["image_embeds_normalized"] = i, out["text_embeds_normalized"] = t;
  out["logits_per_text"] = model.logit_scale.exp() * at::mm(t, i.t());
  out["logits_per_image"] = out["logits_per_text"].t();
  if (i.size(0) == t.size(0)) out["clip_score_pairwise"] = (100 * (i * t).sum(-1)).clamp_min(0);
  return out;
}

TensorMap clip_text_reference(nn::Module& module, const TensorMap& inputs, const Json&, bool) {
  const NoGrad no_grad;
  const auto& model = dynamic_cast<const ClipTextModel&>(module);
  const ClipTextOutput text = model(reference_input(inputs, "input_ids"));
  const auto& states = text.hidden_states;
  TensorMap out{{"embeddings", states.front()},
                {"last_layer_no_final_norm", states.back()},
                {"last_hidden_state", text.last_hidden_state},
                {"pooler_output", text.pooled}};
  if (states.size() > 1) out["penultimate_hidden"] = states[states.size() - 2];
  for (size_t i = 0; i < states.size(); ++i) out[fmt::format("hidden_states.{}", i)] = states[i];
  if (model.config().projection) out["text_embeds"] = model.project(text.pooled);
  return out;
}

// Every input `pixel_values` or `pixel_values_NAME`; outputs of the latter are called "NAME. ...".
TensorMap dinov2_reference(nn::Module& module, const TensorMap& inputs, const Json&, bool) {
  const NoGrad no_grad;
  const auto& model = dynamic_cast<const Dinov2Model&>(module);
  TensorMap out;
  for (const auto& [name, images] : inputs) {
    constexpr std::string_view kInput = "pixel_values";
    if (!name.starts_with(kInput)) continue;
    const std::string prefix = name.size() > kInput.size() ? name.substr(kInput.size() + 1) + "." : "";
    const Dinov2Output result = model(images);
    for (size_t i = 0; i < result.hidden_states.size(); ++i) {
      out[fmt::format("{}hidden_states.{}", prefix, i)] = result.hidden_states[i];
      out[fmt::format("{}layer{}_after_final_layernorm", prefix, i)] = model.norm(result.hidden_states[i]);
    }
    out[prefix + "last_hidden_state"] = result.last_hidden_state;
    out[prefix + "pooler_output"] = result.pooled();
    out[prefix + "position_embedding"] = model.position_embedding(images.size(2), images.size(3));
  }
  if (out.empty()) fail<DataError>("io.safetensors: 'input.pixel_values' is missing");
  return out;
}

// images_0_1 as pytorch-fid takes them: resized to 299 (bilinear, half-pixel centres, no antialias), then mapped to
// [-1, 1]. Batch norm is folded as in evaluation.
TensorMap fid_inception_reference(nn::Module& module, const TensorMap& inputs, const Json&, bool) {
  const NoGrad no_grad;
  auto& model = dynamic_cast<FidInception&>(module);
  model.prepare_inference();
  const Tensor resized =
      at::upsample_bilinear2d(reference_input(inputs, "images_0_1"), {FidInception::kSide, FidInception::kSide}, false);
  const InceptionTaps taps = model(2 * resized - 1);
  return {
      {"block0_mean", taps.pool1.mean({2, 3})},
      {"block1_mean", taps.pool2.mean({2, 3})},
      {"block2_mean", taps.mixed6e.mean({2, 3})},
      {"block2_mixed6e_first8ch", taps.mixed6e.narrow(1, 0, std::min<int64_t>(8, taps.mixed6e.size(1))).contiguous()},
      {"pool3", taps.pool3},
      {"logits_unbiased", model.unbiased_logits(taps.pool3)}};
}

TensorMap vgg16_reference(nn::Module& module, const TensorMap& inputs, const Json&, bool) {
  const NoGrad no_grad;
  const auto& model = dynamic_cast<const Vgg16&>(module);
  const Tensor& images = reference_input(inputs, "pixel_values");
  TensorMap out{{"fc2_relu", model.fc2(images)}, {"logits", model.logits(images)}};
  const std::vector<Tensor> stages = model.stages(images);
  for (size_t i = 0; i < stages.size(); ++i) out[fmt::format("stage{}", i + 1)] = stages[i];
  return out;
}

}  // namespace fewstep::models
