#include "src/pipelines/autoregressive_pipeline.h"

#include <ATen/Parallel.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/log.h"
#include "src/base/memory.h"
#include "src/base/text.h"
#include "src/io/image.h"
#include "src/models/json_fields.h"
#include "src/pipelines/components.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::pipelines {
namespace fs = std::filesystem;

Tensor encode_prompts(const text::BpeTokenizer& tokenizer, const models::SequenceLayout& layout,
                      const std::vector<std::string>& prompts) {
  std::vector<std::vector<int64_t>> ids;
  for (const std::string& prompt : prompts) ids.push_back(tokenizer.encode(prompt));
  return layout.prompts(ids);
}

namespace {

models::SequenceLayout read_layout(const fs::path& folder) {
  const fs::path index = folder / "model_index.json";
  const Json json = read_json(index);
  const Json* layout = models::JsonDataFields(json, index.string()).find("sequence_layout");
  if (layout == nullptr) fail<DataError>("{}: sequence_layout is missing", index.string());
  return models::SequenceLayout::from_json(*layout, index.string());
}

// A model that was never fine-tuned on noise can still be decoded by sjd2: with the default noise over its own table, and
// without timestep tokens, which mean nothing to it.
models::EmbeddingNoise noise_of(const fs::path& folder, const models::LlamaForCausalLM& model,
                                const models::SequenceLayout& layout) {
  if (auto noise = models::EmbeddingNoise::load(folder / "next_clean_token")) return std::move(*noise);
  models::EmbeddingNoiseConfig config;
  config.timestep_tokens = models::TimestepTokens::none;
  return models::EmbeddingNoise(config, model.embedding_weight(), layout.image_id(0));
}

}  // namespace

AutoregressivePipeline::AutoregressivePipeline(const fs::path& folder, at::Device device)
    : tokenizer_(text::BpeTokenizer::load(folder / "tokenizer")),
      transformer_(load_frozen_component<models::LlamaForCausalLM>(folder / "transformer", "LlamaForCausalLM")),
      vq_(load_frozen_component<models::VQModel>(folder / "vq", "VQModel")),
      layout_(read_layout(folder)),
      model_(*transformer_, layout_),
      noise_(noise_of(folder, *transformer_, layout_)),
      fine_tuned_(fs::exists(folder / "next_clean_token" / "config.json")),
      device_(device) {
  layout_.check(tokenizer_.vocab_size(), vq_->config().num_vq_embeddings, transformer_->config().vocab_size, folder.string());
  transformer_->to(device);
  vq_->to(device);
  noise_.to(transformer_->embedding_weight().options());
  transformer_->prepare_inference();
}

std::string AutoregressivePipeline::description() const {
  return fmt::format("autoregressive, {} parameters, {} x {} codes of {}",
                     human_count(static_cast<double>(transformer_->parameter_count())), layout_.grid_height,
                     layout_.grid_width, layout_.codebook);
}

void AutoregressivePipeline::check(const GenerateOptions& options) const {
  refuse_diffusion_keys(options, "an autoregressive model");
  decoding::check(options.decoder, layout_.image_length());
  if (options.decoder.kind != decoding::DecoderKind::sjd2) return;
  const models::TimestepTokens trained = noise_.config().timestep_tokens;
  const auto wanted = options.timestep_tokens;
  if (wanted != GenerateOptions::TimestepTokens::checkpoint && static_cast<int>(wanted) - 1 != static_cast<int>(trained))
    fail<ConfigError>("timestep_tokens: this checkpoint was {}trained with '{}'; leave the key out, or fine-tune a model with "
                      "the other setting", fine_tuned_ ? "" : "never fine-tuned on noise and counts as ",
                      models::name_of(trained));
  if (!fine_tuned_ && options.decoder.mode == decoding::Sjd2Mode::published)
    log::warn("this model was never fine-tuned on noisy embeddings: 'published' verifies across noisy slots and will leave its "
              "law; mode=gated is exact with any model, and trainer next_clean_token makes the denoising useful");
}

Tensor AutoregressivePipeline::encode(const std::vector<std::string>& prompts) const {
  return encode_prompts(tokenizer_, layout_, prompts).to(device_);
}

Tensor AutoregressivePipeline::decode_images(const Tensor& tokens) const {
  const Tensor indices = layout_.indices(tokens.to(device_)).clamp(0, layout_.codebook - 1);
  return io::to_bytes(vq_->decode_indices(indices).to(at::kCPU));
}

Generated AutoregressivePipeline::generate(const std::vector<std::string>& prompts, uint64_t seed,
                                           std::span<const int64_t> ids, const GenerateOptions& options) {
  check(options);
  FEW_CHECK(ids.size() == prompts.size(), "{} prompts and {} ids", prompts.size(), ids.size());
  const NoGrad no_grad;
  const auto N = static_cast<int64_t>(prompts.size());
  const Tensor rows = encode(prompts);
  std::vector<Tensor> images, codes, passes;
  Generated out;
  for (int64_t start = 0; start < N; start += options.batch_size) {
    const int64_t B = std::min(options.batch_size, N - start);
    const Tensor own = at::tensor(at::IntArrayRef(ids.data() + start, static_cast<size_t>(B)), at::kLong);
    auto decoded = decoding::decode(model_, rows.narrow(0, start, B), own, seed, options.decoder_options(), &noise_);
    const auto begin = std::chrono::steady_clock::now();
    images.push_back(decode_images(decoded.codes));
    out.decode_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    codes.push_back(decoded.codes), passes.push_back(decoded.passes);
    out.decoded.push_back(std::move(decoded));
  }
  const Tensor steps = at::cat(passes).to(at::kDouble);
  out.images = at::cat(images);
  out.tokens = at::cat(codes);
  out.steps = steps.mean().item<double>();
  out.step_compression = (static_cast<double>(layout_.image_length()) / steps).mean().item<double>();
  out.nfe = out.steps * (options.guidance != 1 ? 2 : 1);
  return out;
}

decoding::DecodingStatistics AutoregressivePipeline::statistics(const std::vector<Generated>& runs) const {
  decoding::DecodingStatistics statistics;
  const Tensor forced = layout_.forced_codes();
  for (const Generated& run : runs) {
    Tensor front = decoding::foreground_slots(run.images, layout_.grid_height, layout_.grid_width);
    if (layout_.row_end)  // structural slots belong to no patch
      front = at::constant_pad_nd(front.view({-1, layout_.grid_height, layout_.grid_width}), {0, 1}).flatten(1);
    int64_t first = 0;
    for (const decoding::Decoded& d : run.decoded) {
      statistics.add(d, forced, front.narrow(0, first, d.codes.size(0)));
      first += d.codes.size(0);
    }
  }
  return statistics;
}

Json AutoregressivePipeline::decoding_report(const std::vector<Generated>& runs, const GenerateOptions& options) const {
  Json report = {{"decoder", decoding::name_of(options.decoder.kind)}, {"lossy", decoding::lossy(options.decoder)},
                 {"tokens", layout_.image_length()}, {"batch_size", options.batch_size}, {"threads", at::get_num_threads()}};
  report.update(statistics(runs).to_json());
  double inner = 0, images = 0, total = 0;
  for (const Generated& run : runs) {
    for (const decoding::Decoded& d : run.decoded) inner += d.seconds, total += d.seconds;
    total += run.decode_seconds, images += static_cast<double>(run.images.size(0));
  }
  report["seconds_per_image"] = {{"inner", inner / images}, {"outer", total / images}};
  report["peak_memory_bytes"] = peak_memory();
  return report;
}

decoding::Decoded AutoregressivePipeline::decode(const std::vector<std::string>& prompts, uint64_t seed, int64_t first_index,
                                                 const GenerateOptions& options, const decoding::PassObserver& observe) const {
  check(options);
  const NoGrad no_grad;
  const Tensor ids = at::arange(first_index, first_index + static_cast<int64_t>(prompts.size()));
  decoding::DecoderOptions decoder = options.decoder_options();
  if (observe) decoder.deterministic = false;  // one image at a time: there would be no pass of the whole batch
  return decoding::decode(model_, encode(prompts), ids, seed, decoder, &noise_, observe);
}

decoding::Likelihood AutoregressivePipeline::likelihood(const std::vector<std::string>& prompts, const Tensor& tokens,
                                                        const GenerateOptions& options) const {
  const NoGrad no_grad;
  return decoding::likelihood(model_, encode(prompts), tokens.to(device_), options.decoder_options().sampling);
}

std::vector<Strip> AutoregressivePipeline::strips(const std::vector<std::string>& prompts, uint64_t seed,
                                                  const GenerateOptions& options, int64_t pictures) {
  using decoding::DecoderKind;
  if (options.decoder.kind == DecoderKind::ar || options.decoder.kind == DecoderKind::zipar || prompts.empty()) return {};
  const NoGrad no_grad;
  std::vector<std::pair<Tensor, Tensor>> history;  // codes and levels [B, N] after each pass
  const decoding::Decoded decoded = decode(prompts, seed, 0, options, [&](int64_t, const Tensor& codes, const Tensor& levels) {
    history.emplace_back(codes.to(at::kCPU), levels.to(at::kCPU));
  });
  std::vector<Strip> strips;
  for (int64_t b = 0; b < decoded.passes.size(0); ++b) {
    const int64_t last = decoded.passes[b].item<int64_t>() - 1, count = std::min(pictures, last + 1);
    Strip& strip = strips.emplace_back();
    std::vector<Tensor> codes, levels;
    for (int64_t k = 0; k < count; ++k) {  // evenly spaced, the first pass and the last among them
      const int64_t pass = count > 1 ? (k * last + (count - 1) / 2) / (count - 1) : last;
      strip.passes.push_back(pass + 1);
      codes.push_back(history[static_cast<size_t>(pass)].first[b]);
      levels.push_back(history[static_cast<size_t>(pass)].second[b]);
    }
    const Tensor pictured = draw_state(at::stack(codes), at::stack(levels), options.decoder.steps);
    for (int64_t k = 0; k < count; ++k) strip.images.push_back(pictured[k]);
  }
  return strips;
}

// Noisy slots are the darker the noisier; slots without a draft are black.
Tensor AutoregressivePipeline::draw_state(const Tensor& codes, const Tensor& levels, int64_t steps) const {
  const Tensor images = decode_images(codes.clamp_min(0)).to(at::kFloat);  // [S, C, H, W]
  Tensor light = (1 - 0.8 * levels.to(at::kFloat) / static_cast<double>(steps)).masked_fill(codes.lt(0), 0);
  light = at::upsample_nearest2d(layout_.indices(light).unsqueeze(1), {images.size(2), images.size(3)});
  return (images * light).to(at::kByte);
}

}  // namespace fewstep::pipelines
