#include "src/pipelines/autoregressive_pipeline.h"

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/text.h"
#include "src/io/image.h"
#include "src/models/model.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::pipelines {
namespace fs = std::filesystem;
namespace {

template <class T>
std::unique_ptr<T> load_component(const fs::path& folder) {
  std::unique_ptr<nn::Module> module = models::load_model(folder);
  auto* typed = dynamic_cast<T*>(module.get());
  if (!typed) fail<ConfigError>("{}: another kind of model than this pipeline needs", folder.string());
  module.release();
  typed->requires_grad(false);
  return std::unique_ptr<T>(typed);
}

}  // namespace

Tensor encode_prompts(const text::BpeTokenizer& tokenizer, const models::SequenceLayout& layout,
                      const std::vector<std::string>& prompts) {
  std::vector<std::vector<int64_t>> ids;
  for (const std::string& prompt : prompts) ids.push_back(tokenizer.encode(prompt));
  return layout.prompts(ids);
}

AutoregressivePipeline::AutoregressivePipeline(const fs::path& folder, at::Device device)
    : tokenizer_(text::BpeTokenizer::load(folder / "tokenizer")),
      transformer_(load_component<models::LlamaForCausalLM>(folder / "transformer")),
      vq_(load_component<models::VQModel>(folder / "vq")),
      device_(device) {
  const fs::path index = folder / "model_index.json";
  layout_ = models::SequenceLayout::from_json(read_json(index).at("sequence_layout"), index.string());
  layout_.check(tokenizer_.vocab_size(), vq_->config().num_vq_embeddings, transformer_->config().vocab_size, folder.string());
  transformer_->to(device);
  vq_->to(device);
  transformer_->prepare_inference();
}

std::string AutoregressivePipeline::description() const {
  return fmt::format("autoregressive, {} parameters, {} x {} codes of {}", human_count(static_cast<double>(transformer_->parameter_count())),
                     layout_.grid_height, layout_.grid_width, layout_.codebook);
}

Generated AutoregressivePipeline::generate(const std::vector<std::string>& prompts, uint64_t seed, int64_t first_index,
                                           const GenerateOptions& options) {
  if (options.decoder != "ar") {
    const std::vector<std::string> known = {"ar"};
    fail<ConfigError>("decoder: {}", not_one_of(options.decoder, known));
  }
  const NoGrad no_grad;
  const decoding::SamplingOptions sampling{options.guidance, options.temperature, options.top_k, options.top_p};
  const Tensor rows = encode_prompts(tokenizer_, layout_, prompts);
  const auto N = static_cast<int64_t>(prompts.size());
  std::vector<Tensor> images, codes;
  Generated out;
  for (int64_t start = 0; start < N; start += options.batch_size) {
    const int64_t B = std::min(options.batch_size, N - start);
    const Tensor ids = at::arange(first_index + start, first_index + start + B);
    const auto decoded = decoding::sample_autoregressive(*transformer_, layout_, rows.narrow(0, start, B).to(device_), ids, seed, sampling);
    codes.push_back(decoded.codes.to(at::kCPU));
    images.push_back(io::to_bytes(vq_->decode_indices(decoded.codes.view({B, layout_.grid_height, layout_.grid_width})).to(at::kCPU)));
    out.steps = decoded.passes;
  }
  out.images = at::cat(images);
  out.tokens = at::cat(codes);
  out.nfe = out.steps * (options.guidance != 1 ? 2 : 1);
  return out;
}

}  // namespace fewstep::pipelines
