#include "trainers/vq_tokenizer.h"

#include <nlohmann/json.hpp>

#include "datasets/loader.h"
#include "src/base/error.h"
#include "src/io/image.h"
#include "src/models/model.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "trainers/losses.h"
#include "trainers/micro_batches.h"
#include "trainers/perceptual.h"
#include "trainers/trainable_set.h"

namespace fewstep {
namespace {

models::VqConfig complete(models::VqConfig c, const Sample& first) {
  c.in_channels = c.out_channels = first.image.size(0);
  c.sample_size = first.image.size(1);
  c.validate("trainer.model");
  return c;
}

models::PatchDiscriminatorConfig complete(models::PatchDiscriminatorConfig c, const Sample& first) {
  c.in_channels = first.image.size(0);
  return c;
}

class VqTokenizerTrainer : public Trainer {
 public:
  VqTokenizerTrainer(const VqTokenizerConfig& config, const TrainContext& context)
      : config_(config), context_(context), model_(complete(config.model, context.train.get(0, 0, 0))),
        set_("vq", start_network(model_, context), config.optimizer, context.world, context.horizon),
        codebook_(model_.codebook(), config.codebook, context.world) {
    if (!config.perceptual.encoder.empty()) {
      const Batch examples = load_range(context.train, 0, std::min<int64_t>(512, context.train.size()), context.seed);
      perceptual_ = std::make_unique<PerceptualDistance>(config.perceptual.encoder, config.perceptual.stages,
                                                         examples.images.to(context.world.device()));
    }
    if (config.adversarial.weight > 0) {
      critic_ = std::make_unique<models::PatchDiscriminator>(complete(config.adversarial.discriminator, context.train.get(0, 0, 0)));
      critic_set_ = std::make_unique<TrainableSet>("critic", start_network(*critic_, context, 1), config.adversarial.optimizer,
                                                   context.world, context.horizon);
    }
  }

  Metrics step(const Batch& batch, const StepContext& at) override {
    Metrics metrics;
    std::vector<Tensor> latents, codes, fakes;
    const bool adversarial = critic_ && static_cast<double>(at.step) >= config_.adversarial.start * static_cast<double>(context_.total_steps);
    for_micro_batches(batch, context_.accumulate, [&](const Batch& micro, bool last) {
      const Tensor z_e = model_.encode(micro.images);  // [B, D, h, w]
      if (codebook_.empty()) fill_codebook(z_e, at);
      const models::Quantized q = model_.quantize(z_e.detach());
      const Tensor z_q = z_e + (q.latents - z_e).detach();  // straight-through (Bengio et al. 2013)
      const Tensor x = model_.decode(z_q);
      set_.backward(loss(x, micro.images, z_e, q.latents, adversarial, metrics), last);
      latents.push_back(cells(z_e));
      codes.push_back(q.indices.flatten(1));
      fakes.push_back(x.detach());
    });
    metrics.add("grad_norm", set_.step(at.step));
    metrics.add("lr", set_.learning_rate(at.step));
    if (adversarial) step_critic(batch, fakes, at, metrics);
    const bool revive = static_cast<double>(at.step) < config_.codebook.revive_until * static_cast<double>(context_.total_steps);
    codebook_.update(at::cat(latents), at::cat(codes), revive, at.seed, at.step);
    metrics.add("revived", static_cast<double>(codebook_.revived()));
    metrics.add("perplexity", codebook_.perplexity());
    return metrics;
  }

  Metrics validate(const Batch& batch) override {
    const TrainableSet::EmaScope ema(set_);
    const Tensor x = reconstruct(batch.images);
    Metrics metrics;
    const auto n = static_cast<double>(batch.size());
    metrics.add("l1", (x - batch.images).abs().mean({1, 2, 3}).sum(), n);
    if (perceptual_) metrics.add("perceptual", perceptual_->sum(x, batch.images), n);
    return metrics;
  }

  // Held-out images above their reconstructions.
  Tensor sample_grid(uint64_t seed) override {
    const Dataset& data = context_.validation && context_.validation->size() > 0 ? *context_.validation : context_.train;
    const TrainableSet::EmaScope ema(set_);
    const Tensor images = load_range(data, 0, std::min<int64_t>(16, data.size()), seed).images.to(context_.world.device());
    const Tensor both = at::cat({images, reconstruct(images)}).to(at::kCPU);
    return io::make_grid(io::to_bytes(both), images.size(0), 2, 2);
  }

  void save_model(const std::filesystem::path& folder) const override {
    const TrainableSet::EmaScope ema(set_);
    models::save_model(folder / "vq", model_, model_.config().to_json());
    write_json(folder / "model_index.json", {{"_class_name", "VQPipeline"}, {"vq", {"fewstep", "VQModel"}}});
  }

  std::map<std::string, TensorMap> state() const override {
    std::map<std::string, TensorMap> files;
    set_.add_state(files);
    if (critic_set_) critic_set_->add_state(files);
    files["codebook"] = codebook_.state();
    return files;
  }

  void load_state(const std::map<std::string, TensorMap>& files) override {
    set_.load_state(files);
    if (critic_set_) critic_set_->load_state(files);
    const auto codebook = files.find("codebook");
    if (codebook == files.end()) fail<DataError>("the checkpoint has no codebook.safetensors");
    codebook_.load_state(codebook->second);
  }

 private:
  // This rank's part of the global mean: sums over rows / global rows * ranks.
  Tensor loss(const Tensor& x, const Tensor& target, const Tensor& z_e, const Tensor& z_q, bool adversarial, Metrics& metrics) {
    const auto n = static_cast<double>(x.size(0));
    const Tensor l1 = (x - target).abs().mean({1, 2, 3}).sum();
    const Tensor commitment = (z_e - z_q).square().mean({1, 2, 3}).sum();
    Tensor total = config_.l1_weight * l1 + config_.commitment_weight * commitment;
    metrics.add("l1", l1, n);
    metrics.add("commitment", commitment, n);
    if (perceptual_) {
      const Tensor distance = perceptual_->sum(x, target);
      total = total + config_.perceptual.weight * distance;
      metrics.add("perceptual", distance, n);
    }
    if (adversarial) {
      const nn::Frozen frozen(*critic_);
      const Tensor generator = hinge_generator((*critic_)(x)) * n;
      total = total + config_.adversarial.weight * generator;
      metrics.add("generator", generator, n);
    }
    return total * (static_cast<double>(context_.world.size()) / static_cast<double>(context_.batch_size));
  }

  void step_critic(const Batch& batch, const std::vector<Tensor>& fakes, const StepContext& at, Metrics& metrics) {
    size_t part = 0;
    for_micro_batches(batch, context_.accumulate, [&](const Batch& micro, bool last) {
      const Tensor l = hinge_critic((*critic_)(micro.images), (*critic_)(fakes[part++]));
      critic_set_->backward(l / static_cast<double>(context_.accumulate), last);
      metrics.add("critic", l);
    });
    critic_set_->step(at.step);
  }

  static Tensor cells(const Tensor& z) { return z.detach().flatten(2).transpose(1, 2); }  // b d h w -> b (h w) d

  void fill_codebook(const Tensor& z_e, const StepContext& at) {
    const Tensor latents = cells(z_e);  // [B, N, D]
    codebook_.update(latents, at::zeros(latents.sizes().slice(0, 2), latents.options().dtype(at::kLong)), true, at.seed, at.step);
  }

  Tensor reconstruct(const Tensor& images) const {
    const NoGrad no_grad;
    return model_.decode(model_.quantize(model_.encode(images)).latents).clamp(-1, 1);
  }

  const VqTokenizerConfig config_;
  const TrainContext context_;
  models::VQModel model_;
  mutable TrainableSet set_;
  MovingCodebook codebook_;
  std::unique_ptr<PerceptualDistance> perceptual_;
  std::unique_ptr<models::PatchDiscriminator> critic_;
  std::unique_ptr<TrainableSet> critic_set_;
};

}  // namespace

void VqTokenizerConfig::describe(config::Visitor& v) {
  v.field("model", model, "encoder, codebook and decoder");
  v.field("optimizer", optimizer, "AdamW and its schedule, of encoder and decoder");
  v.field("codebook", codebook, "moving averages and revival of dead codes");
  v.field("l1_weight", l1_weight, "weight of the mean absolute error", config::kNonNegative);
  v.field("commitment_weight", commitment_weight, "weight of |z_e - sg(z_q)|^2 (beta)", config::kNonNegative);
  v.field("perceptual", perceptual, "distance in the activations of a frozen encoder");
  v.field("adversarial", adversarial, "PatchGAN term");
}

std::unique_ptr<Trainer> VqTokenizerConfig::build(const TrainContext& context) const {
  return std::make_unique<VqTokenizerTrainer>(*this, context);
}

std::unique_ptr<TrainerConfig> make_vq_tokenizer() { return std::make_unique<VqTokenizerConfig>(); }

}  // namespace fewstep
