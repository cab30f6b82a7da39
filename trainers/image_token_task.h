// What trainers of image tokens share: captions and images to ids, the plain next-token loss, sample grids, the model folder.
#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "src/models/embedding_noise.h"
#include "src/models/llama.h"
#include "src/models/sequence_layout.h"
#include "src/models/vq_model.h"
#include "src/pipelines/pipeline.h"
#include "src/text/bpe.h"
#include "trainers/trainer.h"
#include "trainers/tuning.h"

namespace fewstep {

// The frozen `vq/` of a run or model folder. ConfigError names `key`.
std::unique_ptr<models::VQModel> load_vq(const std::string& folder, std::string_view key, at::Device device);

class ImageTokenTask {
 public:
  ImageTokenTask(std::unique_ptr<models::VQModel> vq, text::BpeTokenizer tokenizer, const models::SequenceLayout& layout,
                 at::Device device);
  // vq/, tokenizer/ and the sequence layout of a model folder of the pipeline `AutoregressivePipeline`.
  static ImageTokenTask load(const std::filesystem::path& model_folder, std::string_view key, at::Device device);

  const models::SequenceLayout& layout() const { return layout_; }
  // ConfigError unless the grid of the layout is that of images like this one.
  void check_images(const Sample& first, std::string_view key) const;

  Tensor prompts(const std::vector<std::string>& captions) const;  // int64 [B, P] on the device
  // A dropped caption is all <pad>: the unconditional prompt of guidance. Keyed by (seed, step, id).
  Tensor drop_captions(const Tensor& prompts, const Tensor& ids, double rate, const StepContext& at) const;
  Tensor indices(const Tensor& images) const;                      // VQ indices [B, h, w], without gradients

  // Cross-entropy of every image token given caption and the tokens before it, [B, N]. indices [B, h, w].
  Tensor autoregressive_loss(const models::LlamaForCausalLM& model, const Tensor& prompts, const Tensor& indices) const;

  // uint8 [C, H, W]: rows of samples, one caption a column. `noise`: for the decoder sjd2.
  Tensor sample_grid(const models::LlamaForCausalLM& model, const TrainContext& context,
                     const pipelines::GenerateOptions& options, uint64_t seed,
                     const models::EmbeddingNoise* noise = nullptr) const;
  // Writes vq/, tokenizer/ and model_index.json; the caller writes transformer/ and, listed in `more`, what else it has.
  void save(const std::filesystem::path& folder, const Json& more) const;

 private:
  std::unique_ptr<models::VQModel> vq_;
  text::BpeTokenizer tokenizer_;
  models::SequenceLayout layout_;
  at::Device device_;
};

}  // namespace fewstep
