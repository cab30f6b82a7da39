// What `fewstep model verify` runs for each network: outputs by the names of golden files.
#pragma once
#include "src/base/json.h"
#include "src/nn/module.h"

namespace fewstep::models {

// input.NAME of the golden file; DataError when it is missing.
const Tensor& reference_input(const TensorMap& inputs, const std::string& name);
// Runs `loss` backward: grad.<name> of every parameter (zeros when the loss does not reach it) and their global norm.
void add_gradients(nn::Module& module, const Tensor& loss, TensorMap* out);

TensorMap llama_reference(nn::Module& module, const TensorMap& inputs, const Json& arguments, bool gradients);
TensorMap autoencoder_kl_reference(nn::Module& module, const TensorMap& inputs, const Json& arguments, bool gradients);
TensorMap unet2d_reference(nn::Module& module, const TensorMap& inputs, const Json& arguments, bool gradients);
TensorMap label_embedding_reference(nn::Module& module, const TensorMap& inputs, const Json& arguments, bool gradients);
TensorMap vq_reference(nn::Module& module, const TensorMap& inputs, const Json& arguments, bool gradients);
TensorMap conv_encoder_reference(nn::Module& module, const TensorMap& inputs, const Json& arguments, bool gradients);
TensorMap contrastive_reference(nn::Module& module, const TensorMap& inputs, const Json& arguments, bool gradients);
TensorMap clip_reference(nn::Module& module, const TensorMap& inputs, const Json& arguments, bool gradients);
TensorMap clip_text_reference(nn::Module& module, const TensorMap& inputs, const Json& arguments, bool gradients);
TensorMap dinov2_reference(nn::Module& module, const TensorMap& inputs, const Json& arguments, bool gradients);
TensorMap fid_inception_reference(nn::Module& module, const TensorMap& inputs, const Json& arguments, bool gradients);
TensorMap vgg16_reference(nn::Module& module, const TensorMap& inputs, const Json& arguments, bool gradients);

}  // namespace fewstep::models
