// One image for each prompt, named and seeded by its caption id: stopped and started again, on any number of processes,
// the same images.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "eval/prompts.h"
#include "src/dist/world.h"
#include "src/pipelines/pipeline.h"

namespace fewstep::eval {

struct GenerationPlan {
  std::filesystem::path folder;  // <caption id, 12 digits>.png, generation.json, metadata.jsonl at the end
  std::vector<Prompt> prompts;
  std::string model_sha256;  // of the weights: images of two models never share a folder
  uint64_t seed = 0;
  bool shared_noise = false;  // one noise for every prompt (keyed by id 0), as MLPerf has it
  pipelines::GenerateOptions options;
};
struct GenerationResult {
  int64_t made = 0, kept = 0;  // images drawn now, and found from an earlier start; of all processes
  double steps = 0, nfe = 0, step_compression = 0;  // means over all images, earlier ones too
  double seconds = 0;                               // of drawing, this time, of the slowest process
};

// Rank r draws the missing images among prompts r, r + R, ... ConfigError when the folder holds images of another
// model, seed, prompt list or options. Interrupted keeps what is there.
GenerationResult generate_images(const GenerationPlan& plan, pipelines::Pipeline& pipeline, dist::World& world);

std::string sample_name(int64_t caption_id);  // "000000000042.png"
// Hash over the weights of every component of a model folder, by name.
std::string model_sha256(const std::filesystem::path& model);

}  // namespace fewstep::eval
