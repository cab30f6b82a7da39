// What a network predicts, and every way from one form to another. With x_t = alpha x0 + sigma eps:
//   epsilon        eps
//   v_prediction   alpha eps - sigma x0   (Salimans & Ho 2022)
//   sample         x0
//   flow           eps - x0               (Lipman et al. 2023)
// The formulas hold for any alpha, sigma (not only alpha^2 + sigma^2 = 1 or alpha + sigma = 1).
#pragma once
#include <span>
#include <string_view>

#include "src/config/visitor.h"
#include "src/tensor/tensor.h"

namespace fewstep::diffusion {

enum class Prediction { epsilon, v_prediction, sample, flow };
std::string_view name_of(Prediction prediction);               // as in diffusers' prediction_type; flow: "flow_prediction"
Prediction prediction_of(std::string_view name, std::string_view where);  // ConfigError naming the known ones
std::span<const config::Choice> prediction_choices();          // for v.field(..., prediction_choices())

struct Denoised {
  Tensor x0, noise;
};

// Tensors alpha, sigma: [B], any floating type; x: [B, ...]. Results have the type of x0 (or of x_t).
Tensor prediction_target(Prediction prediction, const Tensor& x0, const Tensor& noise, const Tensor& alpha, const Tensor& sigma);
// epsilon needs alpha > 0 and sample needs sigma > 0 for the other half of the answer; v_prediction and flow need neither.
Denoised split_prediction(Prediction prediction, const Tensor& output, const Tensor& x_t, const Tensor& alpha, const Tensor& sigma);
Denoised split_prediction(Prediction prediction, const Tensor& output, const Tensor& x_t, double alpha, double sigma);

}  // namespace fewstep::diffusion
