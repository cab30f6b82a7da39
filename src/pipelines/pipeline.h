// The one way from prompts to images, for sample, eval, training grids and experiments.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "src/base/json.h"
#include "src/config/visitor.h"
#include "src/decoding/decoders.h"
#include "src/pipelines/diffusion_options.h"
#include "src/tensor/tensor.h"

namespace fewstep::pipelines {

struct GenerateOptions {   // key=value on the command line
  double guidance = 1.0;   // classifier-free scale; 1: conditional only
  double temperature = 1.0;
  int64_t top_k = 0;       // 0: all
  double top_p = 1.0;
  int64_t batch_size = 64;
  decoding::DecoderOptions decoder;  // autoregressive models; its keys stand beside those above
  // The checkpoint's setting is used; another one given here is refused.
  enum class TimestepTokens { checkpoint, none, shared_suffix, per_slot } timestep_tokens = TimestepTokens::checkpoint;
  DiffusionOptions diffusion;        // diffusion models; flat keys, too

  decoding::DecoderOptions decoder_options() const;  // with the sampling options above
};
void describe(config::Visitor& v, GenerateOptions& c);
// "decoder=sjd2 window=64": the keys that differ from their defaults, as the command line takes them; "" when none does.
std::string changed_options(GenerateOptions options);
// ConfigError naming the keys that were changed and mean nothing to this kind of model.
void refuse_autoregressive_keys(const GenerateOptions& options, std::string_view model);
void refuse_diffusion_keys(const GenerateOptions& options, std::string_view model);

struct Generated {
  Tensor images;             // uint8 [N, C, H, W]
  Tensor tokens;             // int64 [N, L]; undefined for models without tokens
  Tensor latents;            // float32 [N, c, h, w] as the diffusion network has them; undefined for other models
  double steps = 0, nfe = 0; // model calls per image, the mean where images differ (guidance counts twice in nfe)
  double step_compression = 0;  // mean over images of tokens / steps; 0: not an autoregressive model
  std::vector<decoding::Decoded> decoded;  // one per batch; empty for models without tokens
  double decode_seconds = 0;    // tokens to images, all batches
};

// One image while it was decoded, from its first pass to its last.
struct Strip {
  std::vector<Tensor> images;  // uint8 [C, H, W]: committed tokens and drafts, the noisier the darker; black: no draft yet
  std::vector<int64_t> passes; // after so many passes, rising
};

class Pipeline {
 public:
  virtual ~Pipeline() = default;
  // Sample i is drawn from a generator keyed by (seed, ids[i]): independent of batch size, order, processes.
  virtual Generated generate(const std::vector<std::string>& prompts, uint64_t seed, std::span<const int64_t> ids,
                             const GenerateOptions& options) = 0;
  // With the ids first_index, first_index + 1, ...
  Generated generate(const std::vector<std::string>& prompts, uint64_t seed, int64_t first_index,
                     const GenerateOptions& options);
  virtual std::string description() const = 0;
  // Passes, step compression, acceptance and times of finished calls, for decoding.json; null for models without tokens.
  virtual Json decoding_report(const std::vector<Generated>& runs, const GenerateOptions& options) const;
  // One image of each prompt (samples 0, 1, ...), up to `pictures` evenly spaced states of each. Empty for decoders without
  // a window.
  virtual std::vector<Strip> strips(const std::vector<std::string>& prompts, uint64_t seed, const GenerateOptions& options,
                                    int64_t pictures);
};
// A run folder (its latest checkpoint), a checkpoint, a model folder with model_index.json, or a checkpoint in a single file.
std::unique_ptr<Pipeline> load(const std::filesystem::path& folder, at::Device device);
std::filesystem::path find_model(const std::filesystem::path& folder);  // the folder that holds model_index.json
// The key of GenerateOptions that --steps stands for: noise levels of decoder sjd2, or sampling steps.
std::string_view steps_key(const std::filesystem::path& folder);

}  // namespace fewstep::pipelines
