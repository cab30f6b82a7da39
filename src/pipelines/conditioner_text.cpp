#include "src/pipelines/conditioner_text.h"

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/models/json_fields.h"
#include "src/models/model.h"
#include "src/pipelines/components.h"
#include "src/tensor/ops.h"

namespace fewstep::pipelines {
namespace fs = std::filesystem;

TextConditioner::TextConditioner(const ConditioningSettings& settings, text::BpeTokenizer tokenizer,
                                 std::unique_ptr<models::ClipTextModel> encoder, bool pooled)
    : Conditioner(settings), tokenizer_(std::move(tokenizer)), encoder_(std::move(encoder)), pooled_(pooled) {
  if (tokenizer_.vocab_size() > encoder_->config().vocab_size)
    fail<ConfigError>("conditioner text: the tokenizer has {} tokens, the encoder knows {}", tokenizer_.vocab_size(),
                      encoder_->config().vocab_size);
}

std::string TextConditioner::description() const {
  return fmt::format("a text encoder of {} parameters (width {}{}, {} numbers)", encoder_->parameter_count(),
                     context_width(), pooled_ ? ", pooled" : "", numbers());
}

void TextConditioner::to(at::Device device) {
  device_ = device;
  encoder_->to(device);
}

// <bos> text <eos> <pad> ...; attention is causal, so what stands behind the end changes nothing before it.
Conditioner::Encoded TextConditioner::encode(const ConditionInput& input) const {
  if (input.captions.empty()) fail<DataError>("conditioner text: the samples come without captions");
  const auto B = static_cast<int64_t>(input.captions.size()), L = context_length();
  const Tensor ids = at::full({B, L}, tokenizer_.pad_id(), at::kLong), ends = at::empty({B}, at::kLong);
  for (int64_t b = 0; b < B; ++b) {
    std::vector<int64_t> tokens = tokenizer_.encode(input.captions[static_cast<size_t>(b)]);
    if (tokens.size() > static_cast<size_t>(L - 2)) tokens.resize(static_cast<size_t>(L - 2));
    int64_t* row = ids.mutable_data_ptr<int64_t>() + b * L;
    row[0] = tokenizer_.bos_id();
    std::copy(tokens.begin(), tokens.end(), row + 1);
    ends.mutable_data_ptr<int64_t>()[b] = static_cast<int64_t>(tokens.size()) + 1;
    row[tokens.size() + 1] = tokenizer_.eos_id();
  }
  const Tensor states = (*encoder_)(ids.to(device_)).last_hidden_state;  // [B, L, D]
  if (!pooled_) return {states, {}};
  return {states, states.index({at::arange(B, at::TensorOptions(at::kLong).device(device_)), ends.to(device_)})};
}

Conditioner::Encoded TextConditioner::encode_empty() const {
  ConditionInput empty;
  empty.captions = {""};
  return encode(empty);
}

void TextConditioner::save_components(const fs::path& folder) const {
  models::save_model(folder / "text_encoder", *encoder_, encoder_->config().to_json());
  tokenizer_.save(folder / "tokenizer");
}
Json TextConditioner::own_config() const { return {{"pooled", pooled_}}; }
Json TextConditioner::index_entries() const {
  return {{"conditioner", {"fewstep", "TextConditioner"}},
          {"text_encoder", {"transformers", "CLIPTextModel"}},
          {"tokenizer", {"transformers", "GPT2Tokenizer"}}};
}

void TextConditionerConfig::describe(config::Visitor& v) {
  v.field("vocab_size", vocab_size, "of the byte-level BPE trained on the captions", {259, 65536});
  v.field("length", length, "tokens of a caption, the start and end tokens among them; longer ones are cut", {3, 4096});
  v.field("dim", dim, "width of the encoder, and of the context", config::kAtLeastOne);
  v.field("layers", layers, "of the encoder", config::kAtLeastOne);
  v.field("heads", heads, "of the encoder; must divide dim", config::kAtLeastOne);
  v.check(heads < 1 || dim % heads == 0, "heads", fmt::format("{} does not divide dim {}", heads, dim));
  v.field("pooled", pooled, "the end token's state is given to the network beside t, too");
  describe_settings(v, settings, /*with_text=*/true);
}

std::unique_ptr<Conditioner> TextConditionerConfig::build(const ConditionerStart& start) const {
  FEW_CHECK(start.train_tokenizer, "a text conditioner needs a tokenizer");
  text::BpeTokenizer tokenizer = start.train_tokenizer(vocab_size);
  models::ClipTextConfig config;
  config.hidden_size = dim, config.intermediate_size = 4 * dim, config.num_hidden_layers = layers;
  config.num_attention_heads = heads, config.activation = models::ClipActivation::gelu;
  config.vocab_size = tokenizer.vocab_size(), config.max_position_embeddings = length, config.projection_dim = dim;
  auto encoder = std::make_unique<models::ClipTextModel>(config);
  encoder->initialise(start.seed);
  return std::make_unique<TextConditioner>(settings, std::move(tokenizer), std::move(encoder), pooled);
}

std::unique_ptr<Conditioner> load_text_conditioner(const fs::path& folder, const Json& config,
                                                   const ConditioningSettings& settings) {
  auto encoder = load_frozen_component<models::ClipTextModel>(folder / "text_encoder", "CLIPTextModel");
  const models::JsonDataFields fields(config, (folder / "conditioner" / "conditioner_config.json").string());
  return std::make_unique<TextConditioner>(settings, text::BpeTokenizer::load(folder / "tokenizer"), std::move(encoder),
                                           fields.value("pooled", true));
}

}  // namespace fewstep::pipelines
