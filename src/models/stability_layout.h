// Tensors of one network between diffusers' layout and that of Stability's single files: names, packed projections, shapes.
// Values are never changed: there and back gives the same bytes.
#pragma once
#include <string_view>

#include "src/tensor/tensor.h"

namespace fewstep::models {

enum class StabilityPart { unet, vae, clip_text, open_clip_text };

// `theirs` without prefix. Views of the given tensors wherever the layout allows. Names that belong to no module of the network
// are moved into `rest`, by their own names (open_clip's logit_scale, the loss of an autoencoder). DataError: not such a network.
TensorMap to_diffusers(StabilityPart part, const TensorMap& theirs, TensorMap& rest, std::string_view where);
// The inverse. `ours` may have older names (an autoencoder's query, key, value, proj_attn; a text encoder without "text_model.").
TensorMap to_stability(StabilityPart part, const TensorMap& ours, TensorMap& rest, std::string_view where);

// Today's names of diffusers and transformers for a network of a folder.
TensorMap modern_names(StabilityPart part, const TensorMap& ours);
std::string modern_name(StabilityPart part, const std::string& name);

}  // namespace fewstep::models
