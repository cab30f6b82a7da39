#include "tools/lora_card.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "eval/results.h"
#include "src/base/error.h"
#include "src/base/hash.h"
#include "src/base/text.h"
#include "src/models/lora_files.h"
#include "src/models/model_folder.h"

namespace fewstep {
namespace fs = std::filesystem;
namespace {

// Text in a cell of a Markdown table.
std::string cell(std::string_view text) {
  std::string out;
  for (const char c : text) out += c == '|' ? "\\|" : c == '\n' ? " " : std::string(1, c);
  return out;
}
void add_row(std::string& out, std::string_view name, std::string_view value) {
  if (!value.empty()) out += fmt::format("| {} | {} |\n", cell(name), cell(value));
}

// Model hubs take "owner/name" only.
bool is_hub_name(const std::string& base) {
  return std::count(base.begin(), base.end(), '/') == 1 && base.front() != '/' && base.front() != '.' && base.back() != '/' &&
         base.find_first_of(" \\:") == base.npos;
}

std::string front_matter(const LoraCard& c) {
  std::string out = "---\n";
  if (is_hub_name(c.base)) out += fmt::format("base_model: {}\n", Json(c.base).dump());
  out += "library_name: diffusers\npipeline_tag: text-to-image\ntags:\n- lora\n";
  if (c.distilled) out += fmt::format("- distillation\n- few-step\n- {}\n", Json(c.distilled->method).dump());
  return out + "---\n";
}

std::string facts(const LoraCard& c) {
  std::string out = "| | |\n|---|---|\n";
  add_row(out, "base", c.base);
  if (c.distilled) add_row(out, "SHA-256 of the base's network", c.distilled->teacher_sha256);
  add_row(out, "adapter", fmt::format("LoRA of rank {} on {} layers of the {}, trained with alpha {:g}{}", c.rank, c.layers, c.component, c.alpha,
                                      c.form == "peft" ? " (inside the weights: alpha = rank)" : ""));
  add_row(out, "weights", fmt::format("{}, {} names", c.dtype, c.form));
  if (const auto& d = c.distilled) {
    add_row(out, "method", d->method);
    add_row(out, "steps", std::to_string(d->steps()));
    add_row(out, "timesteps", fmt::format("{:g}", fmt::join(d->timesteps, ", ")));
    add_row(out, "sigmas", fmt::format("{:.5f}", fmt::join(d->sigmas, ", ")));
    add_row(out, "sampler", fmt::format("{} ({})", d->sampler, c.scheduler));
    add_row(out, "guidance", d->guidance == 1 ? "1 (one call of the network a step)" : fmt::format("{:g}", d->guidance));
    for (const auto& [key, value] : d->training) add_row(out, "training: " + key, value);
  } else {
    add_row(out, "scheduler", c.scheduler);
  }
  return out;
}

std::string usage(const LoraCard& c) {
  const int64_t steps = c.distilled ? c.distilled->steps() : 0;
  std::string out = "\n## Use\n\n";
  if (c.pipeline.starts_with("StableDiffusion")) {
    out += "```python\nfrom diffusers import DiffusionPipeline, " + c.scheduler + "\n\n";
    out += fmt::format("pipe = DiffusionPipeline.from_pretrained({})\n", Json(c.base).dump());
    out += fmt::format("pipe.load_lora_weights(\"FOLDER\", weight_name=\"{}\")\n", models::kLoraWeights);
    if (steps > 0) out += fmt::format("pipe.scheduler = {}.from_pretrained(\"FOLDER\", subfolder=\"scheduler\")\n", c.scheduler);
    out += steps > 0 ? fmt::format("image = pipe(\"a lighthouse\", num_inference_steps={}, guidance_scale={:.1f}).images[0]\n```\n\n", steps, c.distilled->guidance)
                     : "image = pipe(\"a lighthouse\").images[0]\n```\n\n";
  }
  out += fmt::format("```\nfewstep sample {} lora=FOLDER{} --prompt \"a lighthouse\"\n```\n", c.base.empty() ? "BASE" : c.base,
                     steps > 0 ? fmt::format(" --steps {} guidance={:g}", steps, c.distilled->guidance) : "");
  return out + "\nFOLDER is the one with this file.\n";
}

std::string measured(const fs::path& path) {
  const eval::Results results = eval::load_results(path);
  std::string out = fmt::format("\n## Measured\n\n{}: {}\n\n| row | metric | value | N |\n|---|---|---|---|\n", results.name, results.protocol);
  for (const eval::ResultRow& row : results.rows) {
    for (const auto& [name, value] : row.metrics)
      out += fmt::format("| {} | {} | {} | {} |\n", cell(row.label), cell(name), cell(eval::format_value(value)), value.n);
    if (row.nfe > 0) out += fmt::format("| {} | network calls an image | {:g} | |\n", cell(row.label), row.nfe);
    if (row.latency.runs > 0) out += fmt::format("| {} | seconds, batch of {} | {:.4g} | {} |\n", cell(row.label), row.latency.batch, row.latency.p50, row.latency.runs);
  }
  return out;
}

std::string hashes(const fs::path& folder) {
  std::string out = "\n## Files\n\n| file | SHA-256 |\n|---|---|\n";
  for (const fs::path& file : models::files_below(folder))
    if (file.filename() != "README.md") out += fmt::format("| {} | {} |\n", cell(file.generic_string()), sha256_file((folder / file).string()));
  return out;
}

}  // namespace

std::string lora_card(const LoraCard& c) {
  const std::string base = c.base.empty() ? "its base model" : c.base;
  std::string out = front_matter(c);
  out += c.distilled ? fmt::format("# {}-step student of {} ({})\n\nA LoRA that lets the base make images in {} step{}{}.\n\n", c.distilled->steps(), base,
                                   c.distilled->method, c.distilled->steps(), c.distilled->steps() == 1 ? "" : "s",
                                   c.distilled->guidance == 1 ? " without guidance" : "")
                     : fmt::format("# LoRA for {}\n\n", base);
  out += facts(c) + usage(c);
  if (!c.results.empty()) out += measured(c.results);
  return out + hashes(c.folder) + "\nMade with fewstep.\n";
}

}  // namespace fewstep
