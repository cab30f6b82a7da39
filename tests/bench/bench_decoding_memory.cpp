// Largest resident memory of a decoder beyond the model's own, each in a process of its own.
#include <fmt/format.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/text.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "tests/bench/bench_decoding.h"

namespace fewstep::bench {
namespace {

// "VmRSS" or "VmHWM" of /proc/self/status, in MiB.
double resident(std::string_view field) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with(field)) return std::stod(line.substr(field.size() + 1)) / 1024;
  fail<DataError>("/proc/self/status has no line {}", field);
}

Json ask_child(const MemoryArguments& a, const std::string& side) {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  const std::string command =
      fmt::format("'{}' memory --model '{}' --batch {} --window {} --steps {} --guidance {} --top-k {} --child '{}'", self,
                  a.model, a.batch, a.decoder.window, a.decoder.steps, a.decoder.guidance, a.decoder.top_k, side);
  FILE* pipe = popen(command.c_str(), "r");
  if (!pipe) fail<Error>("cannot start {}", command);
  std::string text;
  for (char buffer[256]; std::fgets(buffer, sizeof(buffer), pipe);) text += buffer;
  if (pclose(pipe) != 0) fail<Error>("a measuring process failed: {}", command);
  return Json::parse(text);
}

}  // namespace

Json memory_of_child(const MemoryArguments& a) {
  const NoGrad no_grad;
  const Model model = make_model(a.model);
  const Tensor prompts = model.prompts(a.batch);
  // Threads, library buffers and every page of the weights belong to the model: one pass before the count begins.
  model.image->code_logits(model.image->hidden(model.image->embed_prompts(prompts), {}));
  model.image->table().sum();
  std::ofstream("/proc/self/clear_refs") << "5";  // VmHWM starts again from what is resident now
  const double before = resident("VmRSS");
  for (const Side& side : sides_of(a.decoder, model.image->length())) {
    if (side.name != a.child) continue;
    decoding::decode(*model.image, prompts, at::arange(a.batch), 1, side.options, model.noise);
    return {{"side", side.name}, {"model_mib", before}, {"peak_mib", resident("VmHWM")}};
  }
  fail<ConfigError>("unknown side '{}'", a.child);
}

Json memory(const MemoryArguments& a) {
  print_machine();
  fmt::print("{}, batch {}: resident MiB, peak and above the loaded model; ratios to ar; {} rounds\n", a.model, a.batch,
             a.rounds);
  const std::vector<Side> sides = sides_of(a.decoder, 1 << 30);
  std::vector<std::vector<double>> peak(sides.size()), above(sides.size());
  for (int64_t round = 0; round < a.rounds; ++round)
    for (size_t i = 0; i < sides.size(); ++i) {
      const Json r = ask_child(a, sides[i].name);
      peak[i].push_back(r.at("peak_mib").get<double>());
      above[i].push_back(peak[i].back() - r.at("model_mib").get<double>());
    }
  Json out = {{"section", "memory"}, {"model", a.model}, {"batch", a.batch}, {"rows", Json::array()}};
  for (size_t i = 0; i < sides.size(); ++i) {
    const double p = median(peak[i]), extra = median(above[i]);
    fmt::print("  {:<20} peak {:>8.1f} (x {:.3f})  above the model {:>8.1f} (x {:.2f})\n", sides[i].name, p, p / median(peak[0]),
               extra, extra / median(above[0]));
    out["rows"].push_back({{"side", sides[i].name},
                           {"peak_mib", p},
                           {"above_model_mib", extra},
                           {"peak_ratio", p / median(peak[0])},
                           {"above_model_ratio", extra / median(above[0])}});
  }
  return out;
}

}  // namespace fewstep::bench
