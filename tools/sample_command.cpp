// fewstep sample RUN_OR_MODEL_DIR (--prompt TEXT | --prompts FILE)
#include <CLI/CLI.hpp>

#include <nlohmann/json.hpp>
#include <optional>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/json.h"
#include "src/base/log.h"
#include "src/base/progress.h"
#include "src/base/signals.h"
#include "src/base/text.h"
#include "src/config/config.h"
#include "src/dist/world.h"
#include "src/io/image.h"
#include "src/io/safetensors.h"
#include "src/pipelines/pipeline.h"
#include "src/tensor/ops.h"
#include "tools/commands.h"

namespace fewstep {
namespace {
namespace fs = std::filesystem;

const std::map<std::string, dist::DeviceKind> kDevices = {
    {"auto", dist::DeviceKind::automatic}, {"cpu", dist::DeviceKind::cpu}, {"cuda", dist::DeviceKind::cuda}};

struct SampleArguments {
  std::string model, prompt, prompts_file, out = "samples", device = "auto", decoder, save_tokens, save_latents, refiner,
      init_image;
  std::optional<int64_t> steps;
  std::optional<double> strength;
  std::vector<std::string> overrides;
  int64_t num = 1;
  uint64_t seed = 0;
};

// `num` samples of each prompt, prompt by prompt: sample i belongs to prompt i / num.
std::vector<std::string> prompt_list(const SampleArguments& a) {
  if (a.prompt.empty() == a.prompts_file.empty()) fail<ConfigError>("give either --prompt TEXT or --prompts FILE");
  std::vector<std::string> prompts;
  if (!a.prompt.empty()) prompts.push_back(a.prompt);
  if (!a.prompts_file.empty())
    for (const std::string& line : split(read_text(a.prompts_file), '\n'))
      if (const auto text = trim(line); !text.empty()) prompts.emplace_back(text);
  if (prompts.empty()) fail<DataError>("{}: no prompts in it (one a line is expected)", a.prompts_file);
  std::vector<std::string> all;
  for (const std::string& prompt : prompts) all.insert(all.end(), static_cast<size_t>(a.num), prompt);
  return all;
}

// Flags are keys by another name; `steps` is that of the model's kind.
pipelines::GenerateOptions options_of(const SampleArguments& a) {
  std::vector<std::string> lines = a.overrides;
  const auto text = [&](std::string_view key, const std::string& value) {  // values are YAML: a path may hold anything
    if (!value.empty()) lines.push_back(fmt::format("{}={}", key, Json(value).dump()));
  };
  text("decoder", a.decoder), text("refiner", a.refiner), text("init_image", a.init_image);
  if (a.steps) lines.push_back(fmt::format("{}={}", pipelines::steps_key(a.model), *a.steps));
  if (a.strength && a.init_image.empty()) fail<ConfigError>("--strength: says how far --init-image is noised; give that, too");
  if (a.strength) lines.push_back(fmt::format("strength={}", *a.strength));
  pipelines::GenerateOptions options;
  config::read_overrides(lines, config::describe_root<pipelines::GenerateOptions>(), &options);
  return options;
}

// decoding.json: passes, step compression, acceptance, time. Inner latency is the tokens', outer includes the images'.
void write_decoding_report(const SampleArguments& a, const pipelines::GenerateOptions& options, const pipelines::Pipeline& pipeline,
                           const std::vector<pipelines::Generated>& runs) {
  const auto report = pipeline.decoding_report(runs, options);
  if (report.is_null()) return;
  write_json(fs::path(a.out) / "decoding.json", report);
  log::info("{}: {:.1f} passes an image, step compression {:.2f}{}, {:.2f} ms a pass, {:.0f} tokens/s (decoding.json)",
            report.at("decoder").get<std::string>(), report.at("passes").get<double>(), report.at("step_compression").get<double>(),
            report.at("lossy").get<bool>() ? " (lossy)" : "", 1e3 * report.at("seconds_per_pass").get<double>(),
            report.at("tokens_per_second").get<double>());
}

void sample(const SampleArguments& a) {
  const std::vector<std::string> prompts = prompt_list(a);
  const auto options = options_of(a);
  make_directories(a.out);
  const auto world = dist::World::from_environment({.device = kDevices.at(a.device)});
  if (world->size() > 1) fail<ConfigError>("sample runs in one process, not under torchrun or srun with {}", world->size());
  const auto pipeline = pipelines::load(a.model, world->device());
  log::info("{}", pipeline->description());
  const auto total = static_cast<int64_t>(prompts.size());
  Progress progress("sample", total);
  std::vector<Tensor> images, tokens, latents;
  std::vector<pipelines::Generated> runs;
  Json index = Json::array();
  for (int64_t start = 0; start < total; start += options.batch_size) {
    if (signals::stop_requested()) throw Interrupted(fmt::format("stopped after {} of {} samples; those are in {}", start, total, a.out));
    const int64_t n = std::min(options.batch_size, total - start);
    const std::vector<std::string> part(prompts.begin() + start, prompts.begin() + start + n);
    const auto generated = runs.emplace_back(pipeline->generate(part, a.seed, start, options));
    for (int64_t i = 0; i < n; ++i) {
      const std::string file = fmt::format("{:06}.png", start + i);
      io::write_image(fs::path(a.out) / file, generated.images.select(0, i));
      index.push_back({{"file_name", file}, {"text", part[static_cast<size_t>(i)]}, {"seed", a.seed}, {"index", start + i}});
    }
    images.push_back(generated.images);
    if (generated.tokens.defined()) tokens.push_back(generated.tokens);
    if (generated.latents.defined()) latents.push_back(generated.latents);
    if (!a.save_latents.empty() && latents.empty()) fail<ConfigError>("--save-latents: this model does not make latents");
    progress.update(start + n, fmt::format("{:.1f} passes, {:.1f} model evaluations an image", generated.steps, generated.nfe));
  }
  progress.finish();
  std::string lines;
  for (const Json& line : index) lines += line.dump() + "\n";
  write_text_atomic(fs::path(a.out) / "metadata.jsonl", lines);
  const int64_t columns = a.num > 1 && a.num <= 16 ? a.num : std::min<int64_t>(10, total);
  const Tensor all = at::cat(images);
  const int64_t scale = std::max<int64_t>(1, 96 / all.size(-1));
  io::write_image(fs::path(a.out) / "grid.png", io::make_grid(all.narrow(0, 0, std::min<int64_t>(total, 400)), columns, 2, scale));
  if (!a.save_tokens.empty()) {
    if (tokens.empty()) fail<ConfigError>("--save-tokens: this model does not make tokens");
    io::write_safetensors(a.save_tokens, {{"tokens", at::cat(tokens)}});
  }
  if (!a.save_latents.empty()) io::write_safetensors(a.save_latents, {{"latents", at::cat(latents)}});
  write_decoding_report(a, options, *pipeline, runs);
  log::info("{} images in {} (grid.png, metadata.jsonl)", total, a.out);
}

}  // namespace

void add_sample_command(CLI::App& app) {
  auto* command = app.add_subcommand("sample", "make images from prompts");
  auto a = std::make_shared<SampleArguments>();
  command->add_option("MODEL", a->model, "run folder, checkpoint or model folder")->required();
  command->add_option("OVERRIDES", a->overrides, "key=value: guidance, batch_size, temperature, window, sampler, height, original_size, ...");
  command->add_option("--prompt", a->prompt, "one prompt");
  command->add_option("--prompts", a->prompts_file, "text file, one prompt a line");
  command->add_option("--num", a->num, "samples of each prompt")->check(CLI::PositiveNumber);
  command->add_option("--seed", a->seed, "sample i depends on (seed, i) only");
  command->add_option("--out", a->out, "folder for the images")->capture_default_str();
  command->add_option("--device", a->device, "auto, cpu or cuda")->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  command->add_option("--decoder", a->decoder, "autoregressive models: ar, jacobi, sjd, sjd2, zipar");
  command->add_option("--save-tokens", a->save_tokens, "safetensors file: `tokens` [N, L] int64 in sample order");
  command->add_option("--steps", a->steps, "diffusion models: sampling steps; decoder sjd2: noise levels")->check(CLI::PositiveNumber);
  command->add_option("--save-latents", a->save_latents, "safetensors file: `latents` [N, C, h, w] in sample order, as the network has them");
  command->add_option("--refiner", a->refiner, "diffusion models: a model that makes the last steps (handover=0.8)");
  command->add_option("--init-image", a->init_image, "diffusion models: image file to start from");
  command->add_option("--strength", a->strength, "how far --init-image is noised: share of the training timesteps, in (0, 1]");
  command->footer("Examples:\n"
                  "  fewstep sample runs/quickstart-ar --prompt \"a dark long dress\" --num 8 guidance=1.5\n"
                  "  fewstep sample runs/quickstart-ar --prompts prompts.txt --seed 3 --out out top_k=200\n"
                  "  fewstep sample runs/sjd2/finetune16 --prompt \"a dark long dress\" --decoder sjd2 window=64 steps=4 coupling=gumbel\n"
                  "  fewstep sample runs/sdxl/tiny --prompt \"a dress\" --num 8 --steps 50 guidance=5 original_size=[28,28]\n"
                  "  fewstep sample sdxl-base --refiner sdxl-refiner --prompt \"a lighthouse\" --steps 50 guidance=5 sampler=euler handover=0.8\n"
                  "  fewstep sample sdxl-base --init-image photo.png --strength 0.4 --prompt \"a watercolour\" height=832 width=1216\n"
                  "  fewstep sample sdxl-base lora=dmd2-lora --steps 4 --prompt \"a lighthouse\"     LoRA files of PEFT's, kohya's and sgm's names, lora_scale=1\n"
                  "What every key means: fewstep config explain sample");
  command->callback([a] { sample(*a); });
}

}  // namespace fewstep
