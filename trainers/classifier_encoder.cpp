#include "trainers/classifier_encoder.h"

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/models/model.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "trainers/calibration.h"
#include "trainers/corruptions.h"
#include "trainers/losses.h"
#include "trainers/micro_batches.h"
#include "trainers/random_crops.h"
#include "trainers/trainable_set.h"

namespace fewstep {
namespace {

models::ConvEncoderConfig complete(models::ConvEncoderConfig c, int64_t crop, const TrainContext& context) {
  const Sample first = context.train.get(0, 0, 0);
  c.in_channels = first.image.size(0);
  c.image_size = crop > 0 ? crop : first.image.size(1);
  if (crop > std::min(first.image.size(1), first.image.size(2)))
    fail<ConfigError>("trainer.crop: {} pixels from images of {} x {}", crop, first.image.size(1), first.image.size(2));
  c.classes = static_cast<int64_t>(context.train.class_names().size());
  c.auxiliary = corruption_names();
  if (c.classes == 0) fail<ConfigError>("classifier_encoder needs a data set with classes; {} has none", context.train.description());
  c.validate("trainer.model");
  return c;
}

class ClassifierEncoderTrainer : public Trainer {
 public:
  ClassifierEncoderTrainer(const ClassifierEncoderConfig& config, const TrainContext& context)
      : config_(config), context_(context), model_(complete(config.model, config.crop, context)),
        pool_(context.train, config.partner_images, context.seed),
        set_("encoder", start_network(model_, context), config.optimizer, context.world, context.horizon) {}

  Metrics step(const Batch& batch, const StepContext& at) override {
    Metrics metrics;
    const double share = static_cast<double>(context_.world.size()) / static_cast<double>(context_.batch_size);
    for_micro_batches(batch, context_.accumulate, [&](Batch micro, bool last) {
      if (config_.flip) micro.images = flip_half(micro, at);
      const Corrupted c = corrupt(micro, pool_, config_.clean_share, at.seed, at.step);
      // Cut after the corruption: a blur reaches over the edge of the cut-out, as in an image.
      const auto out = model_(cropped(c.images, micro.ids, at.seed, at.step));
      // Mixed pictures have no class: their rows are left out of the class loss.
      const Tensor ce = at::cross_entropy_loss(out.logits, micro.labels, {}, at::Reduction::None, -100, config_.label_smoothing);
      const Tensor class_sum = (ce * c.content).sum();
      const Tensor grade_sum = (out.auxiliary - c.levels).square().mean(1).sum();
      set_.backward((class_sum + config_.corruption_weight * grade_sum) * share, last);
      const auto n = static_cast<double>(micro.size());
      metrics.add("class_loss", class_sum, n);
      metrics.add("corruption_loss", grade_sum, n);
    });
    metrics.add("grad_norm", set_.step(at.step));
    metrics.add("lr", set_.learning_rate(at.step));
    return metrics;
  }

  Metrics validate(const Batch& batch) override {
    const TrainableSet::EmaScope ema(set_);
    Metrics metrics;
    metrics.add("accuracy", correct_count(model_.logits(cropped(batch.images, batch.ids, context_.seed, 0)), batch.labels), static_cast<double>(batch.size()));
    return metrics;
  }

  Tensor sample_grid(uint64_t) override { return {}; }
  void save_model(const std::filesystem::path& folder) const override {
    const TrainableSet::EmaScope ema(set_);
    calibrate_features(model_, context_);
    models::save_model(folder / "encoder", model_, model_.config().to_json());
    write_json(folder / "model_index.json", {{"_class_name", "ConvEncoderPipeline"}, {"encoder", {"fewstep", "ConvEncoder"}}});
  }
  std::map<std::string, TensorMap> state() const override {
    std::map<std::string, TensorMap> files;
    set_.add_state(files);
    return files;
  }
  void load_state(const std::map<std::string, TensorMap>& files) override { set_.load_state(files); }

 private:
  Tensor cropped(const Tensor& images, const Tensor& ids, uint64_t seed, int64_t step) const {
    return config_.crop > 0 ? random_crops(images, ids, config_.crop, seed, step) : images;
  }
  static Tensor flip_half(const Batch& batch, const StepContext& at) {
    const Tensor u = uniform_by_id(batch.ids, 1, at.seed, Stream::mix, at.step).view({-1, 1, 1, 1});
    return at::where(u.lt(0.5), batch.images, batch.images.flip({3}));
  }

  const ClassifierEncoderConfig config_;
  const TrainContext context_;
  mutable models::ConvEncoder model_;  // saving sets the scale of its features
  PartnerPool pool_;
  mutable TrainableSet set_;  // saving swaps the EMA in and out
};

}  // namespace

void ClassifierEncoderConfig::describe(config::Visitor& v) {
  v.field("model", model, "the encoder");
  v.field("optimizer", optimizer, "AdamW and its schedule");
  v.field("clean_share", clean_share, "share of rows left without corruption", {0, 0.99});
  v.field("corruption_weight", corruption_weight, "weight of grading corruptions (squared error)", config::kNonNegative);
  v.field("label_smoothing", label_smoothing, "of the class loss", config::kUnit);
  v.field("flip", flip, "mirror half of the images");
  v.field("crop", crop, "side of the random square cut-outs it is trained on, for distances of patches; 0: whole images",
          config::kNonNegative);
  v.field("partner_images", partner_images, "images kept in memory that mixed pictures are made of", config::kAtLeastOne);
}

std::unique_ptr<Trainer> ClassifierEncoderConfig::build(const TrainContext& context) const {
  return std::make_unique<ClassifierEncoderTrainer>(*this, context);
}

std::unique_ptr<TrainerConfig> make_classifier_encoder() { return std::make_unique<ClassifierEncoderConfig>(); }

}  // namespace fewstep
