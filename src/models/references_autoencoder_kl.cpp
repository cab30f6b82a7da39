// What `fewstep model verify` runs for AutoencoderKL.
#include "src/models/autoencoder_kl.h"
#include "src/models/references.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::models {

// posterior_{mean, logvar, std, kl} of `image`, scaled_latent_of_mode, decoded from `latent` (not scaled). With `noise`:
// reconstruction = the decoded sample of the posterior, loss = mean(reconstruction^2) + mean(kl) / 100, and its gradients.
TensorMap autoencoder_kl_reference(nn::Module& module, const TensorMap& inputs, const Json&, bool gradients) {
  const auto& model = dynamic_cast<AutoencoderKL&>(module);
  at::AutoGradMode grad_mode(gradients);
  const Posterior posterior = model.encode(reference_input(inputs, "image"));
  TensorMap out{{"posterior_mean", posterior.mean.detach()},
                {"posterior_logvar", posterior.logvar.detach()},
                {"posterior_std", posterior.std().detach()},
                {"posterior_kl", posterior.kl().detach()},
                {"scaled_latent_of_mode", model.scale(posterior.mean).detach()}};
  out["unscaled"] = model.unscale(out["scaled_latent_of_mode"]).detach();
  if (inputs.contains("latent")) out["decoded"] = model.decode(inputs.at("latent")).detach();
  if (!inputs.contains("noise")) return out;
  const Tensor reconstruction = model.decode(posterior.sample(inputs.at("noise")));
  const Tensor loss = reconstruction.square().mean() + 0.01 * posterior.kl().mean();
  out["reconstruction"] = reconstruction.detach();
  out["loss"] = loss.detach();
  if (gradients) add_gradients(module, loss, &out);
  return out;
}

}  // namespace fewstep::models
