#include "src/diffusion/prediction.h"

#include "src/base/error.h"
#include "src/base/text.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::diffusion {
namespace {

constexpr config::Choice kPredictions[] = {{"epsilon", static_cast<int>(Prediction::epsilon)},
                                           {"v_prediction", static_cast<int>(Prediction::v_prediction)},
                                           {"sample", static_cast<int>(Prediction::sample)},
                                           {"flow_prediction", static_cast<int>(Prediction::flow)}};

// [B] -> [B, 1, ...] in x's type and place.
Tensor level_like(const Tensor& level, const Tensor& x) {
  FEW_CHECK(level.dim() == 1 && level.size(0) == x.size(0), "a level for each of {} samples, got {}", x.size(0), level.numel());
  return append_dims(level.to(x.device(), at::kDouble), x.dim());
}
// Combinations of levels are made in float64 and rounded once, to x's type: 1 / alpha amplifies by 14 at SDXL's last timestep.
Tensor coefficient(const Tensor& value, const Tensor& x) { return value.to(x.scalar_type()); }
double coefficient(double value, const Tensor&) { return value; }

template <class Level>
Denoised split_at(Prediction prediction, const Tensor& output, const Tensor& x, const Level& a, const Level& s) {
  const auto mix = [&](const Level& of_x, const Level& of_output) { return coefficient(of_x, x) * x + coefficient(of_output, x) * output; };
  switch (prediction) {
    case Prediction::epsilon: return {mix(1.0 / a, -s / a), output};
    case Prediction::sample: return {output, mix(1.0 / s, -a / s)};
    case Prediction::v_prediction: {
      const Level square = a * a + s * s;
      return {mix(a / square, -s / square), mix(s / square, a / square)};
    }
    case Prediction::flow: {
      const Level sum = a + s;
      return {mix(1.0 / sum, -s / sum), mix(1.0 / sum, a / sum)};
    }
  }
  fail("unknown prediction {}", static_cast<int>(prediction));
}

}  // namespace

std::string_view name_of(Prediction prediction) { return kPredictions[static_cast<size_t>(prediction)].name; }

std::span<const config::Choice> prediction_choices() { return kPredictions; }

Prediction prediction_of(std::string_view name, std::string_view where) {
  std::vector<std::string> known;
  for (const config::Choice& choice : kPredictions) {
    if (choice.name == name) return static_cast<Prediction>(choice.value);
    known.emplace_back(choice.name);
  }
  fail<ConfigError>("{}: prediction_type: {}", where, not_one_of(name, known));
}

Tensor prediction_target(Prediction prediction, const Tensor& x0, const Tensor& noise, const Tensor& alpha, const Tensor& sigma) {
  FEW_CHECK(x0.sizes() == noise.sizes(), "a target of {} values and noise of {}", x0.numel(), noise.numel());
  switch (prediction) {
    case Prediction::epsilon: return noise;
    case Prediction::sample: return x0;
    case Prediction::flow: return noise - x0;
    case Prediction::v_prediction: return coefficient(level_like(alpha, x0), x0) * noise - coefficient(level_like(sigma, x0), x0) * x0;
  }
  fail("unknown prediction {}", static_cast<int>(prediction));
}

Denoised split_prediction(Prediction prediction, const Tensor& output, const Tensor& x_t, const Tensor& alpha, const Tensor& sigma) {
  return split_at<Tensor>(prediction, output, x_t, level_like(alpha, x_t), level_like(sigma, x_t));
}

Denoised split_prediction(Prediction prediction, const Tensor& output, const Tensor& x_t, double alpha, double sigma) {
  return split_at<double>(prediction, output, x_t, alpha, sigma);
}

}  // namespace fewstep::diffusion
