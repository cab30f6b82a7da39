#include "trainers/contrastive.h"

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/models/model.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "trainers/calibration.h"
#include "trainers/captions.h"
#include "trainers/corruptions.h"
#include "trainers/losses.h"
#include "trainers/micro_batches.h"
#include "trainers/trainable_set.h"

namespace fewstep {
namespace {

models::ContrastiveConfig complete(models::ContrastiveConfig c, const TrainContext& context, const text::BpeTokenizer& tokenizer) {
  const Sample first = context.train.get(0, 0, 0);
  c.image.in_channels = first.image.size(0);
  c.image.image_size = first.image.size(1);
  c.image.classes = 0;
  c.image.auxiliary = corruption_names();
  c.vocab_size = tokenizer.vocab_size();
  c.pad_token_id = tokenizer.pad_id();
  c.validate("trainer.model");
  return c;
}

class ContrastiveTrainer : public Trainer {
 public:
  ContrastiveTrainer(const ContrastiveTrainerConfig& config, const TrainContext& context)
      : config_(config), context_(context), tokenizer_(train_tokenizer(context.train, config.text_vocab, context.seed)),
        model_(complete(config.model, context, tokenizer_)), pool_(context.train, config.partner_images, context.seed),
        set_("clip", start_network(model_, context), config.optimizer, context.world, context.horizon) {}

  Metrics step(const Batch& batch, const StepContext& at) override {
    Metrics metrics;
    for_micro_batches(batch, context_.accumulate, [&](const Batch& micro, bool last) {
      const Corrupted c = corrupt(micro, pool_, config_.clean_share, at.seed, at.step);
      const auto out = model_.image()(c.images);
      const Tensor unit = out.embedding / out.embedding.norm(2, 1, true).clamp_min(1e-12);
      const Tensor pairs = pair_loss(unit, text_ids(micro), c.content);
      const Tensor grade_sum = (out.auxiliary - c.levels).square().mean(1).sum();
      const auto n = static_cast<double>(micro.size());
      const double accumulate = static_cast<double>(context_.accumulate);
      // The pair loss is global already and every rank differentiates its own embeddings: the sum over ranks is meant.
      const auto ranks = static_cast<double>(context_.world.size());
      set_.backward(pairs * ranks / accumulate + config_.corruption_weight * grade_sum / (n * accumulate), last);
      metrics.add("contrastive_loss", pairs);
      metrics.add("corruption_loss", grade_sum, n);
    });
    metrics.add("logit_scale", model_.scale());
    metrics.add("grad_norm", set_.step(at.step));
    metrics.add("lr", set_.learning_rate(at.step));
    return metrics;
  }

  // Of pairs in batches: how often the nearest text's caption is the image's own.
  Metrics validate(const Batch& batch) override {
    const TrainableSet::EmaScope ema(set_);
    const Tensor ids = text_ids(batch);
    const Tensor best = at::matmul(model_.image_embeddings(batch.images), model_.text_embeddings(ids).t()).argmax(1);
    Metrics metrics;
    metrics.add("retrieval", ids.index_select(0, best).eq(ids).all(1).sum(), static_cast<double>(batch.size()));
    return metrics;
  }

  Tensor sample_grid(uint64_t) override { return {}; }
  void save_model(const std::filesystem::path& folder) const override {
    const TrainableSet::EmaScope ema(set_);
    calibrate_features(model_.image(), context_);
    models::save_model(folder / "clip", model_, model_.config().to_json());
    tokenizer_.save(folder / "tokenizer");
    write_json(folder / "model_index.json", {{"_class_name", "ContrastivePipeline"}, {"clip", {"fewstep", "ContrastiveModel"}},
                                             {"tokenizer", {"fewstep", "BpeTokenizer"}}});
  }
  std::map<std::string, TensorMap> state() const override {
    std::map<std::string, TensorMap> files;
    set_.add_state(files);
    return files;
  }
  void load_state(const std::map<std::string, TensorMap>& files) override { set_.load_state(files); }

 private:
  Tensor text_ids(const Batch& batch) const {
    return pad_ids(encode_all(tokenizer_, batch.captions), config_.model.context_length, tokenizer_.pad_id())
        .to(context_.world.device());
  }

  // Every rank's rows; this rank's keep their gradient.
  Tensor gathered(const Tensor& mine) const {
    std::vector<Tensor> all = context_.world.all_gather(mine.detach().contiguous());
    all[static_cast<size_t>(context_.world.rank())] = mine;
    return at::cat(all);
  }

  // Mean over the pairs of all ranks. Equal captions are each other's positives.
  Tensor pair_loss(const Tensor& image, const Tensor& ids, const Tensor& content) const {
    const Tensor images = gathered(image), texts = gathered(model_.text_embeddings(ids)), all_ids = gathered(ids);
    const Tensor match = all_ids.unsqueeze(0).eq(all_ids.unsqueeze(1)).all(2).to(images.scalar_type());
    // Each rank computes the whole loss: its share of the temperature's gradient is 1 / ranks.
    const Tensor scale = model_.scale(), rest = scale.detach();
    const Tensor shared_scale = rest + (scale - rest) / static_cast<double>(context_.world.size());
    return contrastive_sum(images, texts, shared_scale, match, gathered(content)) / static_cast<double>(images.size(0));
  }

  const ContrastiveTrainerConfig config_;
  const TrainContext context_;
  const text::BpeTokenizer tokenizer_;
  mutable models::ContrastiveModel model_;  // saving sets the scale of its features
  PartnerPool pool_;
  mutable TrainableSet set_;
};

}  // namespace

void ContrastiveTrainerConfig::describe(config::Visitor& v) {
  v.field("model", model, "image and text towers");
  v.field("optimizer", optimizer, "AdamW and its schedule");
  v.field("text_vocab", text_vocab, "vocabulary of the byte-level BPE trained on the captions", {260});
  v.field("clean_share", clean_share, "share of rows left without corruption", {0, 0.99});
  v.field("corruption_weight", corruption_weight, "weight of grading corruptions (squared error)", config::kNonNegative);
  v.field("partner_images", partner_images, "images kept in memory that mixed pictures are made of", config::kAtLeastOne);
}

std::unique_ptr<Trainer> ContrastiveTrainerConfig::build(const TrainContext& context) const {
  return std::make_unique<ContrastiveTrainer>(*this, context);
}

std::unique_ptr<TrainerConfig> make_contrastive() { return std::make_unique<ContrastiveTrainerConfig>(); }

}  // namespace fewstep
