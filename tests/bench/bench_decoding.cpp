// Decoders of autoregressive image models against each other, in turns on one machine:
//   ratios          seconds of an image and a pass, speed-up over ar, share of a pass outside the transformer
//   ridge           seconds of a pass against its query length; the prediction for a device bound by memory
//   passes          forward passes of gated and published sjd2: what gating costs
//   memory          peak memory beyond the model's
//   deterministic   what deterministic=true costs a batch
// tools/bench_decoding.sh runs them all with the settings that make timings of two-core machines comparable.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/json.h"
#include "tests/bench/bench_decoding.h"

namespace fewstep::bench {
namespace {

struct Arguments {
  RatiosArguments ratios;
  RidgeArguments ridge;
  PassesArguments passes;
  MemoryArguments memory;
  std::string json;
};

void add_model(CLI::App& app, std::string& model) {
  app.add_option("--model", model, "tiny, tiny1024, 50m (all random), or a run or model folder")->capture_default_str();
}

void add_decoder(CLI::App& app, DecoderArguments& d) {
  app.add_option("--window", d.window, "drafts of a pass, the same for all decoders")->capture_default_str();
  app.add_option("--steps", d.steps, "noise levels K of sjd2")->capture_default_str();
  app.add_option("--guidance", d.guidance, "1: none")->capture_default_str();
  app.add_option("--top-k", d.top_k, "0: all")->capture_default_str();
}

void add_ratios(CLI::App& app, RatiosArguments& a) {
  add_model(app, a.model);
  app.add_option("--batch", a.batch, "batch sizes; `deterministic` takes the last")->delimiter(',')->capture_default_str();
  app.add_option("--images", a.images, "images of a side in a round, at least one batch")->capture_default_str();
  app.add_option("--rounds", a.rounds, "turns of all sides; medians are printed")->capture_default_str();
  app.add_flag("--whole", a.whole, "decode whole images of more than 512 tokens too, instead of passes spread over them");
  app.add_option("--places", a.sampled.places, "sampled: cache lengths")->capture_default_str();
  app.add_option("--warm", a.sampled.warm, "sampled: passes left out at each")->capture_default_str();
  app.add_option("--passes", a.sampled.passes, "sampled: passes counted at each")->capture_default_str();
  app.add_option("--assume-s", a.assume_s, "sampled: also combine the passes with this step compression");
  app.add_option("--logit-scale", a.logit_scale, "random models: factor of the output layer; 0: chosen for S of 3 to 5");
  add_decoder(app, a.decoder);
}

void add_ridge(CLI::App& app, RidgeArguments& a) {
  add_model(app, a.model);
  app.add_option("--cached", a.cached, "image tokens in the cache; -1: half of the image")->capture_default_str();
  app.add_option("--rounds", a.rounds, "turns of all lengths; medians are printed")->capture_default_str();
  app.add_option("--most", a.most, "longest query")->capture_default_str();
  app.add_option("--assume-s", a.assume_s, "step compression of the predictions")->capture_default_str();
  app.add_option("--windows", a.windows, "windows of the predictions")->delimiter(',')->capture_default_str();
}

void add_passes(CLI::App& app, PassesArguments& a) {
  add_model(app, a.model);
  app.add_option("--images", a.images, "decoded at once")->capture_default_str();
  app.add_option("--windows", a.windows)->delimiter(',')->capture_default_str();
  app.add_option("--guidance", a.decoder.guidance, "1: none")->capture_default_str();
  app.add_option("--top-k", a.decoder.top_k, "0: all")->capture_default_str();
}

void add_memory(CLI::App& app, MemoryArguments& a) {
  add_model(app, a.model);
  app.add_option("--batch", a.batch)->capture_default_str();
  app.add_option("--rounds", a.rounds, "processes a side")->capture_default_str();
  app.add_option("--child", a.child, "measure this side in this process (used by the section itself)")->group("");
  add_decoder(app, a.decoder);
}

int run(int argc, char** argv) {
  CLI::App app("Decoders of autoregressive image models, timed in turns");
  Arguments a;
  app.require_subcommand(1);
  app.add_option("--json", a.json, "write the numbers to this file");
  auto* ratios_command = app.add_subcommand("ratios", "speed of decoders against ar");
  auto* ridge_command = app.add_subcommand("ridge", "time of a pass against its query length");
  auto* passes_command = app.add_subcommand("passes", "forward passes of gated and published sjd2");
  auto* memory_command = app.add_subcommand("memory", "peak memory beyond the model's");
  auto* deterministic_command = app.add_subcommand("deterministic", "cost of deterministic=true");
  for (CLI::App* command : {ratios_command, ridge_command, passes_command, memory_command, deterministic_command}) command->fallthrough();
  add_ratios(*ratios_command, a.ratios), add_ratios(*deterministic_command, a.ratios);
  add_ridge(*ridge_command, a.ridge), add_passes(*passes_command, a.passes);
  add_memory(*memory_command, a.memory);
  CLI11_PARSE(app, argc, argv);
  if (!a.memory.child.empty()) {
    fmt::print("{}\n", memory_of_child(a.memory).dump());
    return 0;
  }
  const Json out = *ratios_command   ? ratios(a.ratios)
                   : *ridge_command  ? ridge(a.ridge)
                   : *passes_command ? passes(a.passes)
                   : *memory_command ? memory(a.memory)
                                     : deterministic(a.ratios);
  if (!a.json.empty()) write_json(a.json, out);
  return 0;
}

}  // namespace
}  // namespace fewstep::bench

int main(int argc, char** argv) {
  try {
    return fewstep::bench::run(argc, argv);
  } catch (const fewstep::Error& e) {
    fmt::print(stderr, "bench_decoding: {}\n", e.what());
    return e.exit_code();
  }
}
