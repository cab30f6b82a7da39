// Conditioning on CLIP's frozen text encoders, as SDXL (CLIP-L and OpenCLIP bigG), its refiner (bigG alone) and Stable
// Diffusion 1.x (CLIP-L alone) do, from diffusers' folders text_encoder, text_encoder_2, tokenizer, tokenizer_2.
#pragma once
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/models/clip.h"
#include "src/pipelines/conditioner.h"
#include "src/text/clip_tokenizer.h"

namespace fewstep::pipelines {

// One text encoder. SDXL reads hidden_states[-2]: the input of the last layer, without the final norm; SD 1.x the last
// one with it. Pooled is the projection of the end token after the final norm.
struct ClipTextPart {
  std::string encoder, tokenizer;  // folders' names
  std::unique_ptr<models::ClipTextModel> model = {};
  std::optional<text::ClipTokenizer> words = {};  // none: the model can only be given ids (golden folders)
  bool penultimate = true;
};

class SdxlConditioner : public Conditioner {
 public:
  SdxlConditioner(const ConditioningSettings& settings, std::vector<ClipTextPart> parts, std::filesystem::path source);
  std::filesystem::path source() const override { return source_; }
  std::string_view kind() const override { return "sdxl"; }
  std::string description() const override;
  int64_t context_width() const override;
  int64_t pooled_width() const override;
  int64_t context_length() const override;
  void to(at::Device device) override;
  Json index_entries() const override;
  std::string diffusers_class() const override;
  size_t encoders() const { return parts_.size(); }
  // Embeddings of token ids int64 [B, L], one tensor an encoder: context [B, L, D] and pooled [B, P].
  std::pair<Tensor, Tensor> encode_ids(const std::vector<Tensor>& ids) const;

 protected:
  Encoded encode(const ConditionInput& input) const override;
  Encoded encode_empty() const override;
  void save_components(const std::filesystem::path& model_folder) const override;

 private:
  std::vector<ClipTextPart> parts_;
  std::filesystem::path source_;  // where the frozen components are copied from
  mutable Encoded empty_;         // of "", made once
  at::Device device_ = at::kCPU;
};

// Trains or samples with the frozen text encoders of a diffusers folder.
struct SdxlConditionerConfig : ConditionerConfig {
  std::string folder;
  ConditioningSettings settings = {};
  std::string_view kind() const override { return "sdxl"; }
  void describe(config::Visitor& v) override;
  std::unique_ptr<Conditioner> build(const ConditionerStart& start) const override;
};
std::unique_ptr<Conditioner> load_sdxl_conditioner(const std::filesystem::path& model_folder, const Json& config,
                                                   const ConditioningSettings& settings);
// Settings from model_index.json: force_zeros_for_empty_prompt, requires_aesthetics_score.
std::unique_ptr<Conditioner> load_diffusers_conditioner(const std::filesystem::path& model_folder);

}  // namespace fewstep::pipelines
