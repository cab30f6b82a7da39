#include "trainers/autoregressive.h"

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/log.h"
#include "src/decoding/autoregressive.h"
#include "src/io/image.h"
#include "src/models/model.h"
#include "src/models/sequence_layout.h"
#include "src/models/vq_model.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "trainers/captions.h"
#include "trainers/micro_batches.h"
#include "trainers/trainable_set.h"

namespace fewstep {
namespace fs = std::filesystem;
namespace {

std::unique_ptr<models::VQModel> load_vq(const std::string& folder, at::Device device) {
  auto module = models::load_model(pipelines::find_model(folder) / "vq");
  auto* vq = dynamic_cast<models::VQModel*>(module.get());
  if (!vq) fail<ConfigError>("trainer.tokenizer: {} holds no VQModel", folder);
  module.release();
  vq->to(device);
  vq->requires_grad(false);
  return std::unique_ptr<models::VQModel>(vq);
}

models::SequenceLayout make_layout(const AutoregressiveConfig& config, const models::VQModel& vq,
                                   const text::BpeTokenizer& tokenizer, const Sample& first) {
  const int64_t factor = vq.config().factor(), height = first.image.size(1), width = first.image.size(2);
  if (height % factor != 0 || width % factor != 0)
    fail<ConfigError>("trainer.tokenizer: images of {} x {} are not a multiple of its factor {}", height, width, factor);
  if (first.image.size(0) != vq.config().in_channels)
    fail<ConfigError>("trainer.tokenizer: it was trained on {} channels, the data has {}", vq.config().in_channels, first.image.size(0));
  models::SequenceLayout layout{.text_vocab = tokenizer.vocab_size(), .pad_id = tokenizer.pad_id(),
                                .codebook = vq.config().num_vq_embeddings, .caption_length = config.caption_length,
                                .grid_height = height / factor, .grid_width = width / factor};
  layout.validate("trainer");
  return layout;
}

models::LlamaConfig complete(models::LlamaConfig c, const models::SequenceLayout& layout) {
  c.vocab_size = layout.vocab_size();
  c.max_position_embeddings = std::max(c.max_position_embeddings, layout.sequence_length());
  c.pad_token_id = layout.pad_id;
  c.validate("trainer.model");
  return c;
}

at::ScalarType dtype_of(Precision p) { return p == Precision::float64 ? at::kDouble : at::kFloat; }

class AutoregressiveTrainer : public Trainer {
 public:
  AutoregressiveTrainer(const AutoregressiveConfig& config, const TrainContext& context)
      : config_(config), context_(context), device_(context.world.device()), vq_(load_vq(config.tokenizer, device_)),
        tokenizer_(train_tokenizer(context.train, config.text_vocab, context.seed)),
        layout_(make_layout(config, *vq_, tokenizer_, context.train.get(0, 0, 0))), model_(complete(config.model, layout_)),
        set_("transformer", initialised(), config.optimizer, context.world, context.total_steps) {
    log::info("autoregressive: {} parameters, {} caption + {} image tokens, vocabulary {} ({} text + 1 + {} codes)",
              model_.parameter_count(), layout_.prompt_length(), layout_.image_length(), layout_.vocab_size(), layout_.text_vocab,
              layout_.codebook);
  }

  Metrics step(const Batch& batch, const StepContext& at) override {
    Metrics metrics;
    // Sum over this rank's tokens / tokens of the global batch, times ranks: their average is the global mean.
    const auto tokens = static_cast<double>(context_.batch_size * layout_.image_length());
    for_micro_batches(batch, context_.accumulate, [&](const Batch& micro, bool last) {
      const Tensor prompts = drop_captions(prompts_of(micro), micro.ids, at);
      const Autocast autocast(device_.type(), at::kBFloat16, config_.precision == Precision::bfloat16);
      const Tensor loss = loss_sum(prompts, encode(micro.images));
      set_.backward(loss * (static_cast<double>(context_.world.size()) / tokens), last);
      metrics.add("loss", loss, static_cast<double>(micro.size() * layout_.image_length()));
    });
    metrics.add("grad_norm", set_.step(at.step));
    metrics.add("lr", set_.learning_rate(at.step));
    return metrics;
  }

  Metrics validate(const Batch& batch) override {
    const TrainableSet::EmaScope ema(set_);
    Metrics metrics;
    metrics.add("loss", loss_sum(prompts_of(batch), encode(batch.images)), static_cast<double>(batch.size() * layout_.image_length()));
    return metrics;
  }

  // Rows of samples, one caption a column.
  Tensor sample_grid(uint64_t seed) override {
    constexpr int64_t kColumns = 10, kRows = 4;
    const Dataset& data = context_.validation && context_.validation->size() > 0 ? *context_.validation : context_.train;
    std::vector<std::string> prompts;
    for (int64_t i = 0; i < kRows * kColumns; ++i) prompts.push_back(data.get((i % kColumns) % data.size(), seed, 0).caption);
    const TrainableSet::EmaScope ema(set_);
    const auto decoded = decoding::sample_autoregressive(
        model_, layout_, encode_captions(prompts), at::arange(kRows * kColumns), seed,
        {config_.sample.guidance, config_.sample.temperature, config_.sample.top_k, config_.sample.top_p});
    const Tensor images = vq_->decode_indices(decoded.codes.view({-1, layout_.grid_height, layout_.grid_width}));
    return io::make_grid(io::to_bytes(images.to(at::kCPU)), kColumns, 2, 2);
  }

  void save_model(const fs::path& folder) const override {
    const TrainableSet::EmaScope ema(set_);
    models::save_model(folder / "transformer", model_, model_.config().to_json());
    models::save_model(folder / "vq", *vq_, vq_->config().to_json());
    tokenizer_.save(folder / "tokenizer");
    write_json(folder / "model_index.json",
               {{"_class_name", "AutoregressivePipeline"}, {"transformer", {"fewstep", "LlamaForCausalLM"}},
                {"vq", {"fewstep", "VQModel"}}, {"tokenizer", {"fewstep", "BpeTokenizer"}}, {"sequence_layout", layout_.to_json()}});
  }
  std::map<std::string, TensorMap> state() const override {
    std::map<std::string, TensorMap> files;
    set_.add_state(files);
    return files;
  }
  void load_state(const std::map<std::string, TensorMap>& files) override { set_.load_state(files); }
  std::string throughput_unit() const override { return "tokens"; }
  double units_per_sample() const override { return static_cast<double>(layout_.image_length()); }
  // 6 FLOP per weight of the matrices and token (Kaplan et al. 2020), caption tokens included, attention scores left out.
  double flops_per_sample() const override {
    const auto weights = static_cast<double>(model_.parameter_count() - model_.embedding_weight().numel());
    return 6 * weights * static_cast<double>(layout_.sequence_length());
  }

 private:
  NamedTensors initialised() {
    model_.to(dtype_of(config_.precision));
    model_.set_recompute(config_.recompute);
    return start_network(model_, context_);
  }

  Tensor encode_captions(const std::vector<std::string>& captions) const {
    return layout_.prompts(encode_all(tokenizer_, captions)).to(device_);
  }
  Tensor prompts_of(const Batch& batch) const { return encode_captions(batch.captions); }

  // A dropped caption is all <pad>: the unconditional prompt of guidance.
  Tensor drop_captions(const Tensor& prompts, const Tensor& ids, const StepContext& at) const {
    if (config_.caption_dropout <= 0) return prompts;
    const Tensor u = uniform_by_id(ids.to(at::kCPU), 1, at.seed, Stream::dropout, at.step).to(device_);
    const Tensor null = at::tensor(layout_.unconditional_prompt(), prompts.options()).unsqueeze(0);
    return at::where(u.lt(config_.caption_dropout), null, prompts);
  }

  Tensor encode(const Tensor& images) const {
    const NoGrad no_grad;
    return vq_->quantize(vq_->encode(images)).indices;  // [B, h, w]
  }

  // Cross-entropy of every image token given caption and the tokens before it, summed.
  Tensor loss_sum(const Tensor& prompts, const Tensor& indices) const {
    const Tensor rows = layout_.rows(prompts, indices);  // [B, P + N]
    const int64_t P = layout_.prompt_length(), N = layout_.image_length();
    const Tensor hidden = model_.hidden(model_.embed(rows.narrow(1, 0, P + N - 1)));
    return model_.token_loss(hidden.narrow(1, P - 1, N), rows.narrow(1, P, N)).sum();
  }

  const AutoregressiveConfig config_;
  const TrainContext context_;
  const at::Device device_;
  std::unique_ptr<models::VQModel> vq_;
  const text::BpeTokenizer tokenizer_;
  const models::SequenceLayout layout_;
  models::LlamaForCausalLM model_;
  mutable TrainableSet set_;
};

}  // namespace

void AutoregressiveConfig::describe(config::Visitor& v) {
  static constexpr config::Choice kPrecisions[] = {{"float32", 0}, {"float64", 1}, {"bfloat16", 2}};
  v.require("tokenizer");
  v.field("tokenizer", tokenizer, "run or model folder of a vq_tokenizer");
  v.field("model", model, "the transformer; its vocabulary follows from captions and codebook");
  v.field("optimizer", optimizer, "AdamW and its schedule");
  v.field("text_vocab", text_vocab, "vocabulary of the byte-level BPE trained on the captions", {260});
  v.field("caption_length", caption_length, "caption tokens; longer captions are cut", config::kAtLeastOne);
  v.field("caption_dropout", caption_dropout, "share of rows trained without caption, for guidance", config::kUnit);
  v.field("precision", precision, "float32; bfloat16: autocast; float64: for exact comparisons", kPrecisions);
  v.field("recompute", recompute, "make each block's activations again in backward instead of keeping them");
  v.field("sample", sample, "decoding of the sample pictures");
}

std::unique_ptr<Trainer> AutoregressiveConfig::build(const TrainContext& context) const {
  return std::make_unique<AutoregressiveTrainer>(*this, context);
}

std::unique_ptr<TrainerConfig> make_autoregressive() { return std::make_unique<AutoregressiveConfig>(); }

}  // namespace fewstep
