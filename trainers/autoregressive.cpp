#include "trainers/autoregressive.h"

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/log.h"
#include "src/models/model.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "trainers/captions.h"
#include "trainers/micro_batches.h"
#include "trainers/trainable_set.h"

namespace fewstep {
namespace fs = std::filesystem;
namespace {

models::SequenceLayout make_layout(const AutoregressiveConfig& config, const models::VQModel& vq,
                                   const text::BpeTokenizer& tokenizer, const Sample& first) {
  const int64_t factor = vq.config().factor(), height = first.image.size(1), width = first.image.size(2);
  if (height % factor != 0 || width % factor != 0)
    fail<ConfigError>("trainer.tokenizer: images of {} x {} are not a multiple of its factor {}", height, width, factor);
  models::SequenceLayout layout{.text_vocab = tokenizer.vocab_size(), .pad_id = tokenizer.pad_id(),
                                .codebook = vq.config().num_vq_embeddings, .caption_length = config.caption_length,
                                .grid_height = height / factor, .grid_width = width / factor};
  layout.validate("trainer");
  return layout;
}

ImageTokenTask make_task(const AutoregressiveConfig& config, const TrainContext& context) {
  const at::Device device = context.world.device();
  const Sample first = context.train.get(0, 0, 0);
  auto vq = load_vq(config.tokenizer, "trainer.tokenizer", device);
  auto tokenizer = train_tokenizer(context.train, config.text_vocab, context.seed);
  const models::SequenceLayout layout = make_layout(config, *vq, tokenizer, first);
  ImageTokenTask task(std::move(vq), std::move(tokenizer), layout, device);
  task.check_images(first, "trainer.tokenizer");
  return task;
}

models::LlamaConfig complete(models::LlamaConfig c, const models::SequenceLayout& layout) {
  c.vocab_size = layout.vocab_size();
  c.max_position_embeddings = std::max(c.max_position_embeddings, layout.sequence_length());
  c.pad_token_id = layout.pad_id;
  c.validate("trainer.model");
  return c;
}

class AutoregressiveTrainer : public Trainer {
 public:
  AutoregressiveTrainer(const AutoregressiveConfig& config, const TrainContext& context)
      : config_(config), context_(context), device_(context.world.device()), task_(make_task(config, context)),
        layout_(task_.layout()), model_(complete(config.model, layout_)),
        set_("transformer", initialised(), config.optimizer, context.world, context.horizon) {
    log::info("autoregressive: {} parameters, {} caption + {} image tokens, vocabulary {} ({} text + 1 + {} codes)",
              model_.parameter_count(), layout_.prompt_length(), layout_.image_length(), layout_.vocab_size(), layout_.text_vocab,
              layout_.codebook);
  }

  Metrics step(const Batch& batch, const StepContext& at) override {
    Metrics metrics;
    // Sum over this rank's tokens / tokens of the global batch, times ranks: their average is the global mean.
    const auto tokens = static_cast<double>(context_.batch_size * layout_.image_length());
    for_micro_batches(batch, context_.accumulate, [&](const Batch& micro, bool last) {
      const Tensor prompts = task_.drop_captions(task_.prompts(micro.captions), micro.ids, config_.caption_dropout, at);
      const Autocast autocast(device_.type(), at::kBFloat16, config_.precision == Precision::bfloat16);
      const Tensor loss = task_.autoregressive_loss(model_, prompts, task_.indices(micro.images)).sum();
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
    const Tensor loss = task_.autoregressive_loss(model_, task_.prompts(batch.captions), task_.indices(batch.images));  // [B, N]
    metrics.add("loss", loss.sum(), static_cast<double>(loss.numel()));
    return metrics;
  }

  Tensor sample_grid(uint64_t seed) override {
    const TrainableSet::EmaScope ema(set_);
    return task_.sample_grid(model_, context_, config_.sample, seed);
  }

  void save_model(const fs::path& folder) const override {
    const TrainableSet::EmaScope ema(set_);
    models::save_model(folder / "transformer", model_, model_.config().to_json());
    task_.save(folder, Json::object());
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

  const AutoregressiveConfig config_;
  const TrainContext context_;
  const at::Device device_;
  const ImageTokenTask task_;
  const models::SequenceLayout layout_;
  models::LlamaForCausalLM model_;
  mutable TrainableSet set_;
};

}  // namespace

void AutoregressiveConfig::describe(config::Visitor& v) {
  v.require("tokenizer");
  v.field("tokenizer", tokenizer, "run or model folder of a vq_tokenizer");
  v.field("model", model, "the transformer; its vocabulary follows from captions and codebook");
  v.field("optimizer", optimizer, "AdamW and its schedule");
  v.field("text_vocab", text_vocab, "vocabulary of the byte-level BPE trained on the captions", {260});
  v.field("caption_length", caption_length, "caption tokens; longer captions are cut", config::kAtLeastOne);
  v.field("caption_dropout", caption_dropout, "share of rows trained without caption, for guidance", config::kUnit);
  describe_precision(v, precision);
  v.field("recompute", recompute, "make each block's activations again in backward instead of keeping them");
  v.field("sample", sample, "decoding of the sample pictures");
}

std::unique_ptr<Trainer> AutoregressiveConfig::build(const TrainContext& context) const {
  return std::make_unique<AutoregressiveTrainer>(*this, context);
}

std::unique_ptr<TrainerConfig> make_autoregressive() { return std::make_unique<AutoregressiveConfig>(); }

}  // namespace fewstep
