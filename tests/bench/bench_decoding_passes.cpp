// What gating costs: forward passes of gated and published sjd2 with the same model, window, levels and coupling. A
// gated window that holds the drafts which ripen meanwhile, window >= K S, waits only at the start of an image, K (1 -
// 1 / S) passes; a shorter one stalls.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "src/tensor/ops.h"
#include "tests/bench/bench_decoding.h"

namespace fewstep::bench {
namespace {

constexpr double kTolerance = 0.05;

double passes_of(const Model& model, const DecoderArguments& a, decoding::Sjd2Mode mode, decoding::Coupling coupling,
                 int64_t images) {
  decoding::DecoderOptions options;
  options.kind = decoding::DecoderKind::sjd2, options.mode = mode, options.coupling = coupling;
  options.window = a.window, options.steps = a.steps;
  options.sampling.guidance = a.guidance, options.sampling.top_k = a.top_k;
  const auto decoded =
      decoding::decode(*model.image, model.prompts(images), at::arange(images), 1, options, model.noise);
  return decoded.passes.to(at::kDouble).mean().item<double>();
}

Json row(const Model& model, const DecoderArguments& a, decoding::Coupling coupling, int64_t images) {
  const double published = passes_of(model, a, decoding::Sjd2Mode::published, coupling, images);
  const double gated = passes_of(model, a, decoding::Sjd2Mode::gated, coupling, images);
  const double S = static_cast<double>(model.image->length()) / published, K = static_cast<double>(a.steps);
  const double bound = published + K * (1 - 1 / S) + kTolerance * published;
  const bool holds_ripening = static_cast<double>(a.window) >= K * S;
  fmt::print(
      "  {:<8} K {:>2} window {:>3} {:<13} published {:>7.2f} passes (S {:.2f})  gated {:>7.2f} (S {:.2f})  bound "
      "{:>7.2f}: {}\n",
      coupling == decoding::Coupling::none ? "none" : "maximal", a.steps, a.window,
      holds_ripening ? fmt::format(">= KS={:.0f}", K * S) : fmt::format("<  KS={:.0f}", K * S), published, S, gated,
      static_cast<double>(model.image->length()) / gated, bound,
      gated <= bound   ? "within"
      : holds_ripening ? "EXCEEDED"
                       : "stalls");
  return {{"coupling", coupling == decoding::Coupling::none ? "none" : "maximal"},
          {"steps", a.steps},
          {"window", a.window},
          {"passes_published", published},
          {"passes_gated", gated},
          {"bound", bound},
          {"window_holds_ripening", holds_ripening}};
}

}  // namespace

Json passes(const PassesArguments& a) {
  const Model model = make_model(a.model);
  fmt::print("{}: {} tokens; guidance {}, top-k {}; mean of {} images; bound: published + K (1 - 1 / S) + {:g} %\n",
             model.name, model.image->length(), a.decoder.guidance, a.decoder.top_k, a.images, 100 * kTolerance);
  Json rows = Json::array();
  DecoderArguments d = a.decoder;
  for (const auto coupling : {decoding::Coupling::none, decoding::Coupling::maximal})
    for (d.steps = 2; d.steps <= 8; d.steps *= 2)
      for (const int64_t window : a.windows) {
        d.window = window;
        rows.push_back(row(model, d, coupling, a.images));
      }
  return {{"section", "passes"},
          {"model", model.name},
          {"tokens", model.image->length()},
          {"images", a.images},
          {"rows", rows}};
}

}  // namespace fewstep::bench
