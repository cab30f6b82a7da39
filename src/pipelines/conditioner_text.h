// Conditioning on a text, by a small encoder that is trained from scratch together with the diffusion network:
// byte-level BPE of the captions, a causal transformer of CLIP's form, context = its last hidden states, pooled = that
// of the end token.
#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "src/models/clip.h"
#include "src/pipelines/conditioner.h"
#include "src/text/bpe.h"

namespace fewstep::pipelines {

class TextConditioner : public Conditioner {
 public:
  TextConditioner(const ConditioningSettings& settings, text::BpeTokenizer tokenizer,
                  std::unique_ptr<models::ClipTextModel> encoder, bool pooled);
  std::string_view kind() const override { return "text"; }
  std::string description() const override;
  int64_t context_width() const override { return encoder_->config().hidden_size; }
  int64_t pooled_width() const override { return pooled_ ? context_width() : 0; }
  int64_t context_length() const override { return encoder_->config().max_position_embeddings; }
  nn::Module* trainable() override { return encoder_.get(); }
  void to(at::Device device) override;
  Json index_entries() const override;

 protected:
  Encoded encode(const ConditionInput& input) const override;
  Encoded encode_empty() const override;
  void save_components(const std::filesystem::path& model_folder) const override;
  Json own_config() const override;

 private:
  text::BpeTokenizer tokenizer_;
  std::unique_ptr<models::ClipTextModel> encoder_;
  bool pooled_;
  at::Device device_ = at::kCPU;
};

struct TextConditionerConfig : ConditionerConfig {
  int64_t vocab_size = 512, length = 24;  // tokens of a caption with <bos> and <eos>; longer ones are cut
  int64_t dim = 128, layers = 2, heads = 4;
  bool pooled = true;
  ConditioningSettings settings = {};
  std::string_view kind() const override { return "text"; }
  void describe(config::Visitor& v) override;
  std::unique_ptr<Conditioner> build(const ConditionerStart& start) const override;
};
std::unique_ptr<Conditioner> load_text_conditioner(const std::filesystem::path& model_folder, const Json& config,
                                                   const ConditioningSettings& settings);

}  // namespace fewstep::pipelines
