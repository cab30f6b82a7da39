#include "tests/support/small_models.h"

#include <nlohmann/json.hpp>

#include "src/base/json.h"
#include "src/models/clip.h"
#include "src/models/llama.h"
#include "src/models/model.h"
#include "src/models/sequence_layout.h"
#include "src/models/vq_model.h"
#include "src/tensor/ops.h"
#include "src/text/bpe.h"

namespace fewstep::support {

void write_small_pipeline(const std::filesystem::path& folder) {
  const auto tokenizer = text::BpeTokenizer::train({"a dark long dress", "a bright wide bag"}, 270);
  tokenizer.save(folder / "tokenizer");
  models::VqConfig vq{.in_channels = 1, .out_channels = 1, .block_out_channels = {8}};
  vq.latent_channels = 4, vq.sample_size = 32, vq.num_vq_embeddings = 16, vq.norm_num_groups = 4, vq.patch_size = 4;
  vq.mid_block_add_attention = false;
  models::VQModel vq_model(vq);
  vq_model.initialise(1);
  models::save_model(folder / "vq", vq_model, vq.to_json());
  const models::SequenceLayout layout{
      .text_vocab = tokenizer.vocab_size(), .pad_id = tokenizer.pad_id(), .codebook = 16, .caption_length = 8};
  models::LlamaConfig llama;
  llama.vocab_size = layout.vocab_size(), llama.hidden_size = 32, llama.intermediate_size = 64,
  llama.num_hidden_layers = 2;
  llama.initializer_range = 0.3;  // a law that hangs on the tokens before, unlike that of the usual start
  models::LlamaForCausalLM transformer(llama);
  transformer.initialise(2);
  models::save_model(folder / "transformer", transformer, llama.to_json());
  write_json(folder / "model_index.json",
             {{"_class_name", "AutoregressivePipeline"}, {"sequence_layout", layout.to_json()}});
}

void write_small_clip(const std::filesystem::path& folder, const std::filesystem::path& vocabulary) {
  models::ClipConfig c;
  c.projection_dim = 16;
  c.text.hidden_size = 24, c.text.intermediate_size = 48, c.text.num_hidden_layers = 2, c.text.num_attention_heads = 2;
  c.text.vocab_size = 722, c.text.eos_token_id = 721;
  c.vision.hidden_size = 32, c.vision.intermediate_size = 64, c.vision.num_hidden_layers = 2;
  c.vision.num_attention_heads = 4, c.vision.image_size = 32, c.vision.patch_size = 8;
  models::ClipModel clip(c);
  int64_t n = 0;  // any numbers; published towers are loaded, never drawn
  for (const auto& [name, parameter] : clip.parameters())
    parameter.detach().copy_(
        at::arange(parameter.numel()).add(37 * ++n).mul(0.7).sin().mul(0.3).view(parameter.sizes()));
  Json json = c.to_json();
  json["architectures"] = {"CLIPModel"};
  models::save_model(folder, clip, json);
  for (const char* name : {"vocab.json", "merges.txt", "tokenizer_config.json"})
    std::filesystem::copy(vocabulary / name, folder / name);
}

}  // namespace fewstep::support
