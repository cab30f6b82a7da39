#include "trainers/next_clean_token.h"

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/log.h"
#include "src/models/model.h"
#include "src/nn/lora.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "trainers/micro_batches.h"
#include "trainers/trainable_set.h"

namespace fewstep {
namespace fs = std::filesystem;
namespace {

constexpr const char* kAdapter = "next_clean_token";

// The start network, in the run's precision and coordinates; on the CPU.
std::unique_ptr<models::LlamaForCausalLM> load_start(const NextCleanTokenConfig& config, const fs::path& folder,
                                                     const models::SequenceLayout& layout) {
  auto module = models::load_model(folder / "transformer");
  auto* typed = dynamic_cast<models::LlamaForCausalLM*>(module.get());
  if (!typed)
    fail<ConfigError>("trainer.model: {} holds another network than LlamaForCausalLM", (folder / "transformer").string());
  module.release();
  std::unique_ptr<models::LlamaForCausalLM> model(typed);
  layout.check(-1, -1, model->config().vocab_size, folder.string());
  if (model->config().tie_word_embeddings && config.freeze_embeddings && config.lora.rank == 0)
    fail<ConfigError>("trainer.freeze_embeddings: the output layer of {} shares the embedding table and would be frozen with it: "
                      "set trainer.freeze_embeddings=false (the noise keeps the statistics of the start)", folder.string());
  model->to(dtype_of(config.precision));
  if (config.anisotropy.on()) model = reparameterise(*model, config.anisotropy);
  return model;
}

bool of_embedding(std::string_view name) {
  return name.starts_with("model.embed_tokens.") || name.starts_with("model.embed_affine.");
}

class NextCleanTokenTrainer : public Trainer {
 public:
  NextCleanTokenTrainer(const NextCleanTokenConfig& config, const TrainContext& context)
      : config_(config), context_(context), device_(context.world.device()), start_(pipelines::find_model(config.model)),
        task_(ImageTokenTask::load(start_, "trainer.model", device_)), layout_(task_.layout()),
        model_(load_start(config, start_, layout_)), noise_(config.noise, model_->embedding_weight(), layout_.image_id(0)),
        structural_(layout_.forced_codes().ge(0)), tuning_(prepare(), config.lora, kAdapter, context.seed),
        set_("transformer", trainable(), config.optimizer, context.world, context.horizon) {
    task_.check_images(context.train.get(0, 0, 0), "trainer.model");
    noise_.to(model_->embedding_weight().options());
    const SignalToNoise snr = signal_to_noise(noise_, model_->embedding_weight(), layout_.image_id(0));
    log::info("next_clean_token: {} of {} parameters trained, from {}; signal to noise of the table's dimensions at t = 0.5: "
              "{:.3g} to {:.3g}, median {:.3g}", trained(), model_->parameter_count(), start_.string(), snr.min, snr.max,
              snr.median);
  }

  Metrics step(const Batch& batch, const StepContext& at) override {
    Metrics metrics;
    // Sum over this rank's rows / rows of the global batch (a fixed number), times ranks: their average is the global mean.
    const double rows = static_cast<double>(context_.batch_size) * rows_per_sample();
    for_micro_batches(batch, context_.accumulate, [&](const Batch& micro, bool last) {
      const Tensor prompts = task_.drop_captions(task_.prompts(micro.captions), micro.ids, config_.caption_dropout, at);
      const Autocast autocast(device_.type(), at::kBFloat16, config_.precision == Precision::bfloat16);
      const nn::AdapterScope adapter(tuning_.active());
      const Tensor indices = task_.indices(micro.images);
      const NoiseKey key{micro.ids.to(at::kCPU), at.seed, at.step};
      const Tensor loss = config_.noisy ? noisy_loss(prompts, indices, key, metrics)
                                        : clean_loss(prompts, indices, "loss", metrics);
      set_.backward(loss * (static_cast<double>(context_.world.size()) / rows), last);
    });
    metrics.add("grad_norm", set_.step(at.step));
    metrics.add("lr", set_.learning_rate(at.step));
    return metrics;
  }

  // The loss of step 0's noise, and that of the plain autoregressive law, which gated decoding samples from.
  Metrics validate(const Batch& batch) override {
    const TrainableSet::EmaScope ema(set_);
    const nn::AdapterScope adapter(tuning_.active());
    Metrics metrics;
    const Tensor prompts = task_.prompts(batch.captions), indices = task_.indices(batch.images);
    if (config_.noisy) noisy_loss(prompts, indices, {batch.ids.to(at::kCPU), context_.seed, 0}, metrics);
    clean_loss(prompts, indices, config_.noisy ? "loss_ar" : "loss", metrics);
    return metrics;
  }

  Tensor sample_grid(uint64_t seed) override {
    const TrainableSet::EmaScope ema(set_);
    const nn::AdapterScope adapter(tuning_.active());
    return task_.sample_grid(*model_, context_, config_.sample, seed, config_.noisy ? &noise_ : nullptr);
  }

  void save_model(const fs::path& folder) const override {
    const TrainableSet::EmaScope ema(set_);
    models::save_model(folder / "transformer", tuning_.merged_state(), model_->config().to_json());
    tuning_.save_adapter(folder / "transformer_lora", config_.model, "CAUSAL_LM");
    if (config_.noisy) noise_.save(folder / "next_clean_token");
    task_.save(folder, config_.noisy ? Json{{"next_clean_token", {"fewstep", "EmbeddingNoise"}}} : Json::object());
  }

  std::map<std::string, TensorMap> state() const override {
    std::map<std::string, TensorMap> files;
    set_.add_state(files);
    files["start"] = {{"mean", noise_.mean()}, {"deviation", noise_.deviation()}};
    return files;
  }

  // Frozen weights are not in the checkpoint: they must be those of the same start again.
  void load_state(const std::map<std::string, TensorMap>& files) override {
    const auto start = files.find("start");
    if (start == files.end()) fail<DataError>("the checkpoint has no start.safetensors");
    for (const auto& [name, now] : {std::pair{"mean", noise_.mean()}, std::pair{"deviation", noise_.deviation()}})
      if (const auto was = start->second.find(name); was == start->second.end() || !was->second.equal(now.to(at::kCPU)))
        fail<DataError>("trainer.model: {} is not the model this run started from: its embedding table has another {}",
                        start_.string(), name);
    set_.load_state(files);
  }

  std::string throughput_unit() const override { return "tokens"; }
  double units_per_sample() const override { return static_cast<double>(layout_.image_length()); }
  // FLOP per weight and column: 2 forward, 2 for the gradient of inputs, 2 for that of weights that are trained.
  double flops_per_sample() const override {
    const auto weights = static_cast<double>(model_->parameter_count() - model_->embedding_weight().numel());
    const double adapter = config_.lora.on() ? static_cast<double>(trained()) : 0;
    return ((config_.lora.on() ? 4 : 6) * weights + 6 * adapter) * static_cast<double>(columns());
  }

 private:
  models::LlamaForCausalLM& prepare() {
    model_->to(device_);
    model_->set_recompute(config_.recompute);
    return *model_;
  }
  NamedTensors trainable() {
    if (config_.lora.on()) return tuning_.parameters();
    NamedTensors out;
    for (NamedTensor& p : tuning_.parameters()) {
      const bool frozen = config_.freeze_embeddings && of_embedding(p.name);
      p.tensor.set_requires_grad(!frozen);
      if (!frozen) out.push_back(std::move(p));
    }
    return out;
  }

  // Next-clean-token prediction: noise on the embeddings of image tokens, one pass, cross-entropy against the clean tokens.
  Tensor noisy_loss(const Tensor& prompts, const Tensor& indices, const NoiseKey& key, Metrics& metrics) const {
    const int64_t P = layout_.prompt_length(), N = layout_.image_length();
    const Tensor tokens = layout_.rows(prompts, indices).narrow(1, P, N), inputs = tokens.narrow(1, 0, N - 1);
    const NoisePlan plan = draw_noise_plan(config_.layout, config_.noise, structural_, key);
    const Tensor eps = normal_by_id(key.ids, {N - 1, model_->config().hidden_size}, key.seed, Stream::noise, key.step);
    const NoisyInput x = arrange(plan, noise_, model_->embed(prompts), model_->embed(inputs), eps);
    models::ForwardOptions options;
    options.positions = x.positions, options.mask = x.mask;
    const Tensor hidden = model_->hidden(x.embeds, options).index_select(1, x.rows);       // [B, R, d]
    const Tensor loss = model_->token_loss(hidden, tokens.index_select(1, x.targets));     // [B, R]
    const Tensor sum = (loss * plan.row_weight.to(loss.options())).sum();
    metrics.add("loss", sum, plan.row_weight.sum().item<double>());
    const LossByLevel levels = by_level(plan, loss);
    for (size_t i = 0; i < kLevelNames.size(); ++i)
      metrics.add(kLevelNames[i], levels.sums[static_cast<int64_t>(i)], levels.counts[i]);
    return sum;
  }

  Tensor clean_loss(const Tensor& prompts, const Tensor& indices, const char* name, Metrics& metrics) const {
    const Tensor loss = task_.autoregressive_loss(*model_, prompts, indices);  // [B, N]
    const Tensor sum = loss.sum();
    metrics.add(name, sum, static_cast<double>(loss.numel()));
    return sum;
  }

  double rows_per_sample() const {
    return config_.noisy ? loss_rows(config_.layout, layout_.image_length()) : static_cast<double>(layout_.image_length());
  }
  int64_t trained() const { return count_elements(set_.parameters()); }
  // Columns of one pass, timestep tokens left out: they are few, or (per_slot) as many as the noisy ones.
  int64_t columns() const {
    const bool two = config_.noisy && config_.layout.layout == NoiseLayout::two_stream;
    return layout_.sequence_length() + (two ? layout_.image_length() : 0);
  }

  const NextCleanTokenConfig config_;
  const TrainContext context_;
  const at::Device device_;
  const fs::path start_;
  const ImageTokenTask task_;
  const models::SequenceLayout layout_;
  const std::unique_ptr<models::LlamaForCausalLM> model_;
  models::EmbeddingNoise noise_;
  const Tensor structural_;  // bool [N]
  const Tuning tuning_;
  mutable TrainableSet set_;
};

}  // namespace

void NextCleanTokenConfig::describe(config::Visitor& v) {
  v.require("model");
  v.field("model", model, "run or model folder of an `autoregressive`: start weights, tokenizers, layout");
  v.field("noise", noise, "noise on token embeddings; written into the model folder for the decoder");
  describe_fields(v, layout);
  v.field("noisy", noisy, "false: plain next-token prediction instead, the control of the fine-tuning");
  v.field("freeze_embeddings", freeze_embeddings, "train all but the embedding table, whose statistics scale the noise");
  v.field("optimizer", optimizer, "AdamW and its schedule");
  v.field("caption_dropout", caption_dropout, "share of rows trained without caption, for guidance", config::kUnit);
  describe_precision(v, precision);
  v.field("recompute", recompute, "make each block's activations again in backward instead of keeping them");
  v.field("lora", lora, "low-rank adapters in place of the weights");
  v.field("anisotropy", anisotropy, "ablation: the same network with a stretched and shifted embedding table");
  v.field("sample", sample, "decoding of the sample pictures");
  v.check(lora.rank == 0 || freeze_embeddings, "freeze_embeddings", "must stay true with lora.rank: no adapter moves the table");
}

std::unique_ptr<Trainer> NextCleanTokenConfig::build(const TrainContext& context) const {
  return std::make_unique<NextCleanTokenTrainer>(*this, context);
}

std::unique_ptr<TrainerConfig> make_next_clean_token() { return std::make_unique<NextCleanTokenConfig>(); }

}  // namespace fewstep
