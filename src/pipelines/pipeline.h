// The one way from prompts to images, for sample, eval, training grids and experiments.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "src/config/visitor.h"
#include "src/tensor/tensor.h"

namespace fewstep::pipelines {

struct GenerateOptions {   // key=value on the command line
  double guidance = 1.0;   // classifier-free scale; 1: conditional only
  double temperature = 1.0;
  int64_t top_k = 0;       // 0: all
  double top_p = 1.0;
  int64_t batch_size = 64;
  std::string decoder = "ar";
};
void describe(config::Visitor& v, GenerateOptions& c);

struct Generated {
  Tensor images;           // uint8 [N, C, H, W]
  Tensor tokens;           // int64 [N, L]; undefined for models without tokens
  int64_t steps = 0, nfe = 0;  // model calls per image (guidance counts twice in nfe)
};

class Pipeline {
 public:
  virtual ~Pipeline() = default;
  // Sample i is drawn from a generator keyed by (seed, first_index + i): independent of batch size, order, processes.
  virtual Generated generate(const std::vector<std::string>& prompts, uint64_t seed, int64_t first_index,
                             const GenerateOptions& options) = 0;
  virtual std::string description() const = 0;
};
// A run folder (its latest checkpoint), a checkpoint, or a model folder with model_index.json.
std::unique_ptr<Pipeline> load(const std::filesystem::path& folder, at::Device device);
std::filesystem::path find_model(const std::filesystem::path& folder);  // the folder that holds model_index.json

}  // namespace fewstep::pipelines
