#include "src/pipelines/conditioner_sdxl.h"

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/log.h"
#include "src/models/json_fields.h"
#include "src/models/model_folder.h"
#include "src/pipelines/components.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::pipelines {
namespace fs = std::filesystem;
namespace {

constexpr MicroSwitches kBaseNumbers = {.size = true, .crop = true, .target = true, .aesthetic = false};
constexpr MicroSwitches kRefinerNumbers = {.size = true, .crop = true, .target = false, .aesthetic = true};
constexpr MicroSwitches kNoNumbers = {.size = false, .crop = false, .target = false, .aesthetic = false};

// The encoders that are there. Two, or the second alone: SDXL and its refiner; the first alone: SD 1.x.
std::vector<ClipTextPart> load_parts(const fs::path& folder) {
  std::vector<ClipTextPart> parts;
  for (const auto& [encoder, tokenizer] :
       {std::pair{"text_encoder", "tokenizer"}, std::pair{"text_encoder_2", "tokenizer_2"}}) {
    if (!fs::exists(folder / encoder / "config.json")) continue;
    ClipTextPart& part = parts.emplace_back(ClipTextPart{.encoder = encoder, .tokenizer = tokenizer});
    part.model = load_frozen_component<models::ClipTextModel>(folder / encoder, "CLIPTextModel");
    if (!fs::is_directory(folder / tokenizer)) continue;
    part.words = text::ClipTokenizer::load(folder / tokenizer);
    const int64_t length = part.words->max_length(), positions = part.model->config().max_position_embeddings;
    if (length > positions || part.words->vocab_size() > part.model->config().vocab_size)
      fail<ConfigError>(
          "{}: texts of {} tokens of {}, and the encoder reads {} of {}; is it another model's tokenizer?",
          (folder / tokenizer).string(), length, part.words->vocab_size(), positions, part.model->config().vocab_size);
  }
  if (parts.empty())
    fail<DataError>("{}: no text encoder (text_encoder/config.json or text_encoder_2/config.json)", folder.string());
  if (parts.size() == 1 && parts[0].encoder == "text_encoder") parts[0].penultimate = false;
  return parts;
}

}  // namespace

SdxlConditioner::SdxlConditioner(const ConditioningSettings& settings, std::vector<ClipTextPart> parts, fs::path source)
    : Conditioner(settings), parts_(std::move(parts)), source_(std::move(source)) {
  for (const ClipTextPart& part : parts_)
    if (part.model->config().max_position_embeddings != parts_[0].model->config().max_position_embeddings)
      fail<ConfigError>("{}: the two text encoders read texts of different lengths", source_.string());
  if (parts_.back().penultimate && !parts_.back().model->config().projection)
    fail<ConfigError>("{}: {} has no projection (CLIPTextModelWithProjection is expected)", source_.string(),
                      parts_.back().encoder);
}

std::string SdxlConditioner::description() const {
  return fmt::format("{} CLIP text encoder{} (width {}, pooled {}, {} numbers)", parts_.size(),
                     parts_.size() > 1 ? "s" : "", context_width(), pooled_width(), numbers());
}
int64_t SdxlConditioner::context_width() const {
  int64_t width = 0;
  for (const ClipTextPart& part : parts_) width += part.model->config().hidden_size;
  return width;
}
int64_t SdxlConditioner::pooled_width() const {
  return parts_.back().penultimate ? parts_.back().model->config().projection_dim : 0;
}
int64_t SdxlConditioner::context_length() const { return parts_[0].model->config().max_position_embeddings; }

void SdxlConditioner::to(at::Device device) {
  device_ = device;
  for (ClipTextPart& part : parts_) part.model->to(device);
  empty_ = {};
}

std::pair<Tensor, Tensor> SdxlConditioner::encode_ids(const std::vector<Tensor>& ids) const {
  FEW_CHECK(ids.size() == parts_.size(), "ids for {} text encoders, there are {}", ids.size(), parts_.size());
  const NoGrad no_grad;
  std::vector<Tensor> states;
  Tensor pooled;
  for (size_t i = 0; i < parts_.size(); ++i) {
    const models::ClipTextModel& model = *parts_[i].model;
    const models::ClipTextOutput out = model(ids[i].to(device_));
    states.push_back(parts_[i].penultimate ? out.hidden_states.at(out.hidden_states.size() - 2)
                                           : out.last_hidden_state);
    if (i + 1 == parts_.size() && parts_[i].penultimate) pooled = model.project(out.pooled);
  }
  return {at::cat(states, -1), pooled};
}

Conditioner::Encoded SdxlConditioner::encode(const ConditionInput& input) const {
  if (input.captions.empty()) fail<DataError>("conditioner sdxl: the samples come without captions");
  std::vector<Tensor> ids;
  for (const ClipTextPart& part : parts_) {
    if (!part.words)
      fail<DataError>("{}: no {}/ in it, so that prompts cannot be read", source_.string(), part.tokenizer);
    std::vector<int64_t> all;
    for (const std::string& caption : input.captions) {
      const auto padded = part.words->encode_padded(caption);
      if (padded.truncated) log::debug("prompt cut to {} tokens: {}", part.words->max_length(), caption.substr(0, 60));
      all.insert(all.end(), padded.ids.begin(), padded.ids.end());
    }
    ids.push_back(at::tensor(all, at::kLong).view({static_cast<int64_t>(input.captions.size()), -1}));
  }
  const auto [context, pooled] = encode_ids(ids);
  return {context, pooled};
}

Conditioner::Encoded SdxlConditioner::encode_empty() const {
  if (empty_.context.defined()) return empty_;
  if (settings_.null_text == NullValue::zeros) {  // needs no tokenizer
    const auto options = at::TensorOptions().device(device_);
    empty_.context = at::zeros({1, context_length(), context_width()}, options);
    if (pooled_width() > 0) empty_.pooled = at::zeros({1, pooled_width()}, options);
  } else {
    ConditionInput empty;
    empty.captions = {""};
    empty_ = encode(empty);
  }
  return empty_;
}

void SdxlConditioner::save_components(const fs::path& folder) const {
  for (const ClipTextPart& part : parts_) {
    link_component(source_, folder, part.encoder);
    if (part.words) link_component(source_, folder, part.tokenizer);
  }
}

std::string SdxlConditioner::diffusers_class() const {
  if (parts_.size() == 2 && settings_.micro == kBaseNumbers) return "StableDiffusionXLPipeline";
  if (parts_.size() == 1 && parts_[0].penultimate && settings_.micro == kRefinerNumbers)
    return "StableDiffusionXLImg2ImgPipeline";
  if (!parts_[0].penultimate && settings_.micro == kNoNumbers) return "StableDiffusionPipeline";
  return {};
}

Json SdxlConditioner::index_entries() const {
  Json out = Json::object();
  for (const ClipTextPart& part : parts_) {
    out[part.encoder] = {"transformers",
                         part.model->config().projection ? "CLIPTextModelWithProjection" : "CLIPTextModel"};
    if (part.words) out[part.tokenizer] = {"transformers", "CLIPTokenizer"};
  }
  const std::string name = diffusers_class();
  if (name == "StableDiffusionXLImg2ImgPipeline") {
    out["text_encoder"] = out["tokenizer"] = {nullptr, nullptr};
    out["requires_aesthetics_score"] = true;
  }
  if (name == "StableDiffusionPipeline") {
    for (const char* key : {"safety_checker", "feature_extractor", "image_encoder"}) out[key] = {nullptr, nullptr};
    out["requires_safety_checker"] = false;
  } else {
    out["force_zeros_for_empty_prompt"] = settings_.null_text == NullValue::zeros;
  }
  if (name.empty()) out["conditioner"] = {"fewstep", "SdxlConditioner"};
  return out;
}

void SdxlConditionerConfig::describe(config::Visitor& v) {
  v.require("folder");
  v.field("folder", folder,
          "model folder with text_encoder, text_encoder_2 and their tokenizers; they stay as they are");
  describe_settings(v, settings, /*with_text=*/true);
}

std::unique_ptr<Conditioner> SdxlConditionerConfig::build(const ConditionerStart&) const {
  if (!fs::exists(folder)) fail<ConfigError>("conditioner: folder {}: no such folder", folder);
  const fs::path model = models::component_folder(folder, {"text_encoder", "text_encoder_2"}).parent_path();
  return std::make_unique<SdxlConditioner>(settings, load_parts(model), model);
}

std::unique_ptr<Conditioner> load_sdxl_conditioner(const fs::path& folder, const Json&,
                                                   const ConditioningSettings& settings) {
  return std::make_unique<SdxlConditioner>(settings, load_parts(folder), folder);
}

std::unique_ptr<Conditioner> load_diffusers_conditioner(const fs::path& folder) {
  const fs::path path = folder / "model_index.json";
  const Json index = read_json(path);
  std::vector<ClipTextPart> parts = load_parts(folder);
  ConditioningSettings s;
  if (!parts.back().penultimate) {
    s.micro = kNoNumbers, s.null_text = NullValue::empty_prompt;
  } else {
    const models::JsonDataFields fields(index, path.string());
    s.micro = fields.value("requires_aesthetics_score", false) ? kRefinerNumbers : kBaseNumbers;
    s.null_text = fields.value("force_zeros_for_empty_prompt", true) ? NullValue::zeros : NullValue::empty_prompt;
  }
  return std::make_unique<SdxlConditioner>(s, std::move(parts), folder);
}

}  // namespace fewstep::pipelines
