// Caption -> BPE -> transformer -> codes -> VQ decoder: the `AutoregressivePipeline` of model_index.json.
#pragma once
#include <memory>

#include "src/decoding/autoregressive.h"
#include "src/models/vq_model.h"
#include "src/pipelines/pipeline.h"
#include "src/text/bpe.h"

namespace fewstep::pipelines {

class AutoregressivePipeline : public Pipeline {
 public:
  // `folder` holds model_index.json and the components transformer/, vq/ and tokenizer/.
  AutoregressivePipeline(const std::filesystem::path& folder, at::Device device);
  Generated generate(const std::vector<std::string>& prompts, uint64_t seed, int64_t first_index,
                     const GenerateOptions& options) override;
  std::string description() const override;

 private:
  text::BpeTokenizer tokenizer_;
  std::unique_ptr<models::LlamaForCausalLM> transformer_;
  std::unique_ptr<models::VQModel> vq_;
  models::SequenceLayout layout_;
  at::Device device_;
};

// int64 [B, P] on the CPU.
Tensor encode_prompts(const text::BpeTokenizer& tokenizer, const models::SequenceLayout& layout,
                      const std::vector<std::string>& prompts);

}  // namespace fewstep::pipelines
