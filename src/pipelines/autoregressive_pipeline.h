// Caption -> BPE -> transformer -> codes -> VQ decoder: the `AutoregressivePipeline` of model_index.json.
#pragma once
#include <memory>

#include "src/decoding/decoders.h"
#include "src/decoding/statistics.h"
#include "src/models/embedding_noise.h"
#include "src/models/vq_model.h"
#include "src/pipelines/pipeline.h"
#include "src/text/bpe.h"

namespace fewstep::pipelines {

class AutoregressivePipeline : public Pipeline {
 public:
  // `folder` holds model_index.json and the components transformer/, vq/ and tokenizer/.
  AutoregressivePipeline(const std::filesystem::path& folder, at::Device device);
  using Pipeline::generate;
  Generated generate(const std::vector<std::string>& prompts, uint64_t seed, std::span<const int64_t> ids,
                     const GenerateOptions& options) override;
  std::string description() const override;
  Json decoding_report(const std::vector<Generated>& runs, const GenerateOptions& options) const override;
  decoding::DecodingStatistics statistics(const std::vector<Generated>& runs) const;  // runs with their images
  std::vector<Strip> strips(const std::vector<std::string>& prompts, uint64_t seed, const GenerateOptions& options,
                            int64_t pictures) override;
  // One batch of tokens without images: sample i is number first_index + i. `observe` sees the whole batch after every pass.
  decoding::Decoded decode(const std::vector<std::string>& prompts, uint64_t seed, int64_t first_index,
                           const GenerateOptions& options, const decoding::PassObserver& observe = {}) const;
  // Of tokens int64 [B, N] given their prompts, under the model's autoregressive law with the sampling options.
  decoding::Likelihood likelihood(const std::vector<std::string>& prompts, const Tensor& tokens,
                                  const GenerateOptions& options) const;

  const decoding::ImageModel& model() const { return model_; }
  const models::SequenceLayout& layout() const { return layout_; }
  const models::EmbeddingNoise& noise() const { return noise_; }
  const models::LlamaForCausalLM& transformer() const { return *transformer_; }
  Tensor encode(const std::vector<std::string>& prompts) const;  // int64 [B, P] on the model's device

 private:
  void check(const GenerateOptions& options) const;
  Tensor decode_images(const Tensor& tokens) const;              // int64 [B, N] -> uint8 [B, C, H, W], CPU
  Tensor draw_state(const Tensor& codes, const Tensor& levels, int64_t steps) const;  // [S, N] each -> uint8 [S, C, H, W]

  text::BpeTokenizer tokenizer_;
  std::unique_ptr<models::LlamaForCausalLM> transformer_;
  std::unique_ptr<models::VQModel> vq_;
  const models::SequenceLayout layout_;
  decoding::LlamaImageModel model_;
  models::EmbeddingNoise noise_;   // of the checkpoint, or defaults over its table
  bool fine_tuned_;                // the checkpoint has the component next_clean_token
  at::Device device_;
};

// int64 [B, P] on the CPU.
Tensor encode_prompts(const text::BpeTokenizer& tokenizer, const models::SequenceLayout& layout,
                      const std::vector<std::string>& prompts);

}  // namespace fewstep::pipelines
