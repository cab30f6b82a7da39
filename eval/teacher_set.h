// What a student's samples are compared with beside real images: its teacher's samples of the same captions, drawn once and kept.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "src/config/visitor.h"
#include "src/pipelines/pipeline.h"

namespace fewstep::eval {

struct TeacherConfig {
  std::string model;                   // run or model folder; empty: no teacher
  std::string images;                  // folder its samples are kept in; empty: <out>/teacher
  int64_t seed = 1000;                 // of its noise: another than that of the samples, so that a teacher's own row is a floor
  pipelines::GenerateOptions generate; // guidance, sampling_steps, ...
  bool on() const { return !model.empty(); }
};
void describe(config::Visitor& v, TeacherConfig& c);

struct TeacherSet {
  Tensor images;   // uint8 [N, C, H, W], image i of caption i
  double nfe = 0;  // network evaluations an image took
};
// Draws what is missing in `folder` (eval/generation.h): rows of a table that name one folder share it. ConfigError when it holds
// samples of another model, seed, options or list of captions.
TeacherSet teacher_set(const TeacherConfig& config, const std::filesystem::path& folder, const std::vector<std::string>& captions,
                       at::Device device);

}  // namespace fewstep::eval
