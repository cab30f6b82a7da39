// One prediction in the form of another: networks of tests answer in every form.
#pragma once
#include "src/diffusion/prediction.h"

namespace fewstep::testing {

inline Tensor convert_prediction(diffusion::Prediction from, diffusion::Prediction to, const Tensor& output, const Tensor& x_t,
                                 const Tensor& alpha, const Tensor& sigma) {
  const diffusion::Denoised parts = diffusion::split_prediction(from, output, x_t, alpha, sigma);
  return from == to ? output : diffusion::prediction_target(to, parts.x0, parts.noise, alpha, sigma);
}

}  // namespace fewstep::testing
