#include "trainers/autoencoder.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "datasets/loader.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/io/image.h"
#include "src/io/safetensors.h"
#include "src/models/model.h"
#include "src/models/model_folder.h"
#include "src/models/weight_files.h"
#include "src/nn/gradients.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "src/tensor/shape.h"
#include "trainers/losses.h"
#include "trainers/micro_batches.h"
#include "trainers/trainable_set.h"

namespace fewstep {
namespace fs = std::filesystem;
namespace {

models::AutoencoderKlConfig complete_kl(models::AutoencoderKlConfig c, const Sample& first) {
  c.in_channels = c.out_channels = first.image.size(0);
  c.sample_size = first.image.size(1);
  c.validate("trainer.model");
  if (first.image.size(1) % c.factor() != 0 || first.image.size(2) % c.factor() != 0)
    fail<ConfigError>("trainer.model: images of {} x {} pixels are not a multiple of its factor {}: fewer block_out_channels, "
                      "another patch_size, or another image size", first.image.size(1), first.image.size(2), c.factor());
  return c;
}

// Of an image on this rank's share of the batch: sums over its images, to be divided by the global number of them.
struct AutoencoderPass {
  Tensor x;                         // [B, C, H, W], reconstructions
  Tensor l1, perceptual, nll, kl;   // scalars
  Tensor generator;                 // scalar; undefined without the adversarial term
  std::optional<ActivationRange> range;
};

class AutoencoderTrainer : public Trainer {
 public:
  AutoencoderTrainer(const AutoencoderConfig& config, const TrainContext& context)
      : config_(config), context_(context), device_(context.world.device()), dtype_(dtype_of(config.precision)),
        model_(complete_kl(config.model, context.train.get(0, 0, 0))),
        set_("vae", start(), config.optimizer, context.world, context.horizon) {
    if (!config.perceptual.encoder.empty()) {
      const Batch examples = load_range(context.train, 0, std::min<int64_t>(512, context.train.size()), context.seed);
      perceptual_ = std::make_unique<PerceptualDistance>(config.perceptual.encoder, config.perceptual.stages,
                                                         examples.images.to(device_, dtype_));
    }
    if (config.adversarial.weight > 0) {
      models::PatchDiscriminatorConfig critic = config.adversarial.discriminator;
      critic.in_channels = model_.config().in_channels;
      critic_ = std::make_unique<models::PatchDiscriminator>(critic);
      critic_->to(dtype_);
      critic_set_ = std::make_unique<TrainableSet>("critic", start_network(*critic_, context, 1), config.adversarial.optimizer,
                                                   context.world, context.horizon);
    }
    const auto& c = model_.config();
    log::info("autoencoder: {} parameters{}, {} x {} pixels to {} latents of {} x {}", model_.parameter_count(),
              critic_ ? fmt::format(" and {} of the discriminator", critic_->parameter_count()) : "", c.sample_size, c.sample_size,
              c.latent_channels, c.sample_size / c.factor(), c.sample_size / c.factor());
  }

  Metrics step(const Batch& batch, const StepContext& at) override {
    Metrics metrics;
    std::vector<Tensor> fakes;
    std::optional<AutoencoderPass> kept;
    const bool adversarial = critic_ && static_cast<double>(at.step) >= config_.adversarial.start * static_cast<double>(context_.total_steps);
    const double weight = adversarial ? adversarial_weight(batch, at, kept) : 0.0;
    for_micro_batches(batch, context_.accumulate, [&](const Batch& micro, bool last) {
      const AutoencoderPass pass = kept ? *std::exchange(kept, {}) : forward(micro, at, adversarial);
      set_.backward(loss(pass, weight), last);
      record(pass, static_cast<double>(micro.size()), metrics);
      fakes.push_back(pass.x.detach());
    });
    add_range(metrics, at);
    metrics.add("grad_norm", set_.step(at.step));
    metrics.add("lr", set_.learning_rate(at.step));
    if (config_.learn_logvar) metrics.add("logvar", logvar_.squeeze(0));
    if (adversarial) {
      metrics.add("adversarial_weight", weight);
      step_critic(batch, fakes, at, metrics);
    }
    return metrics;
  }

  // Of the posterior's mode, clamped to [-1, 1]; psnr in dB, the mean over images.
  Metrics validate(const Batch& batch) override {
    const TrainableSet::EmaScope ema(set_);
    const NoGrad no_grad;
    const Tensor images = batch.images.to(dtype_);
    const models::Posterior posterior = encode(images);
    const Tensor x = decode(posterior.mean).clamp(-1, 1);
    const Tensor error = (x - images).to(at::kDouble).square().mean({1, 2, 3}).clamp_min(1e-12);
    const auto n = static_cast<double>(batch.size());
    Metrics metrics;
    metrics.add("psnr", (10.0 * (4.0 / error).log10()).sum(), n);
    metrics.add("l1", (x - images).abs().mean({1, 2, 3}).sum(), n);
    metrics.add("kl", posterior.kl().sum(), n);
    if (perceptual_) metrics.add("perceptual", perceptual_->sum(x, images), n);
    return metrics;
  }

  // Held-out images above their reconstructions.
  Tensor sample_grid(uint64_t seed) override {
    const Dataset& data = context_.validation && context_.validation->size() > 0 ? *context_.validation : context_.train;
    const TrainableSet::EmaScope ema(set_);
    const NoGrad no_grad;
    const Tensor images = load_range(data, 0, std::min<int64_t>(16, data.size()), seed).images.to(device_, dtype_);
    const Tensor both = at::cat({images, decode(encode(images).mean).clamp(-1, 1)}).to(at::kCPU, at::kFloat);
    return io::make_grid(io::to_bytes(both), images.size(0), 2, 2);
  }

  // One rank writes, and it alone measures: there is nothing to agree on. The same images each time.
  void save_model(const fs::path& folder) const override {
    const TrainableSet::EmaScope ema(set_);
    const int64_t n = std::min(config_.latent_samples, context_.train.size());
    const Tensor images = load_range(context_.train, 0, n, context_.seed).images;
    const auto c = with_scaling(model_.config(), measure_latents(model_, images.to(device_, dtype_)), config_.scaling);
    log::info("autoencoder: latents of {} training images: scaling_factor {:.5g}{}", n, c.scaling_factor,
              c.latents_std.empty() ? "" : ", latents_mean and latents_std a channel");
    models::save_model(folder / "vae", model_, c.to_json());
    write_json(folder / "model_index.json", {{"_class_name", "AutoencoderKL"}, {"vae", {"diffusers", "AutoencoderKL"}}});
  }

  std::map<std::string, TensorMap> state() const override {
    std::map<std::string, TensorMap> files;
    set_.add_state(files);
    if (critic_set_) critic_set_->add_state(files);
    return files;
  }
  void load_state(const std::map<std::string, TensorMap>& files) override {
    set_.load_state(files);
    if (critic_set_) critic_set_->load_state(files);
  }

 private:
  // Weights in place, and the parameters that are trained: the network's, and the likelihood's scale where it is learnt.
  NamedTensors start() {
    model_.to(dtype_);
    model_.set_recompute(config_.recompute);
    NamedTensors parameters = start_network(model_, context_);
    if (!config_.init.empty()) load_initial();
    logvar_ = at::full({1}, config_.logvar, at::TensorOptions(device_).dtype(dtype_));
    if (config_.learn_logvar) parameters.push_back({"logvar", logvar_.requires_grad_(true)});
    return parameters;
  }

  void load_initial() {
    const NoGrad no_grad;
    const fs::path weights = models::find_weights(models::component_folder(config_.init, {"vae"}));
    model_.load(io::Safetensors(weights).all(), weights.string());
  }

  models::Posterior encode(const Tensor& images) const {
    const Autocast autocast(device_.type(), at::kBFloat16, config_.precision == Precision::bfloat16);
    models::Posterior posterior = model_.encode(images);
    return {posterior.mean.to(dtype_), posterior.logvar.to(dtype_)};
  }
  Tensor decode(const Tensor& latents) const {
    const Autocast autocast(device_.type(), at::kBFloat16, config_.precision == Precision::bfloat16);
    return model_.decode(latents).to(dtype_);
  }

  bool watched(const StepContext& at) const {
    return config_.range.penalty > 0 || (config_.range.every > 0 && at.step % config_.range.every == 0);
  }

  // Noise is keyed by (seed, step, id): a batch cut otherwise gives the same images.
  AutoencoderPass forward(const Batch& micro, const StepContext& at, bool adversarial) const {
    const Tensor images = micro.images.to(dtype_);
    const models::Posterior posterior = encode(images);
    const Tensor noise = normal_by_id(micro.ids.to(at::kCPU), posterior.mean.sizes().slice(1), at.seed, Stream::noise, at.step);
    const Tensor z = posterior.sample(noise.to(device_, dtype_));
    AutoencoderPass pass;
    if (watched(at)) {
      const nn::TapScope scope;
      pass.x = decode(z);
      pass.range = activation_range(scope.values(), config_.range);
    } else {
      pass.x = decode(z);
    }
    Tensor weighted;
    if (perceptual_) {
      pass.perceptual = perceptual_->sum(pass.x, images);
      weighted = config_.perceptual.weight * pass.perceptual;
    }
    pass.l1 = (pass.x - images).abs().mean({1, 2, 3}).sum();
    pass.nll = laplace_nll(pass.x, images, weighted, logvar_);
    pass.kl = posterior.kl().sum();
    if (adversarial) {
      const nn::Frozen frozen(*critic_);
      pass.generator = hinge_generator((*critic_)(pass.x)) * static_cast<double>(micro.size());
    }
    return pass;
  }

  // The same on every rank, and for every way to cut the global batch: both gradients at the last layer are summed over it
  // before their norms are taken. With several micro-batches that costs a second forward pass of each; the pass of a single
  // one is `kept`.
  double adversarial_weight(const Batch& batch, const StepContext& at, std::optional<AutoencoderPass>& kept) {
    if (!config_.adversarial.adaptive) return config_.adversarial.weight;
    const Tensor last_layer = model_.last_layer().weight;
    Tensor gradients;  // [2, ...]: of the likelihood, of the adversarial term
    for_micro_batches(batch, context_.accumulate, [&](const Batch& micro, bool) {
      const AutoencoderPass pass = forward(micro, at, true);
      const auto of = [&](const Tensor& term) {
        return nn::gradients(term, {last_layer}, /*retain_graph=*/true)[0].to(at::kDouble);
      };
      const Tensor both = at::stack({of(pass.nll), of(pass.generator)});
      gradients = gradients.defined() ? gradients + both : both;
      if (context_.accumulate == 1) kept = pass;
    });
    gradients = gradients / static_cast<double>(context_.batch_size);
    context_.world.all_reduce_sum(gradients);
    const Tensor norms = gradients.flatten(1).square().sum(1).sqrt().to(at::kCPU);
    return config_.adversarial.weight * adaptive_weight(norms[0].item<double>(), norms[1].item<double>());
  }

  // This rank's part of the global mean: sums over images / global images * ranks.
  Tensor loss(const AutoencoderPass& pass, double weight) const {
    Tensor total = pass.nll + config_.kl_weight * pass.kl;
    if (pass.generator.defined()) total = total + weight * pass.generator;
    if (pass.range && pass.range->excess.defined()) total = total + config_.range.penalty * pass.range->excess;
    return total * (static_cast<double>(context_.world.size()) / static_cast<double>(context_.batch_size));
  }

  void record(const AutoencoderPass& pass, double n, Metrics& metrics) {
    metrics.add("l1", pass.l1, n);
    metrics.add("nll", pass.nll, n);
    metrics.add("kl", pass.kl, n);
    if (pass.perceptual.defined()) metrics.add("perceptual", pass.perceptual, n);
    if (pass.generator.defined()) metrics.add("generator", pass.generator, n);
    if (!pass.range) return;
    metrics.add("activations_above_limit", pass.range->above, pass.range->count);
    if (pass.range->excess.defined()) metrics.add("range_penalty", pass.range->excess, n);
    const Tensor largest = pass.range->largest.to(at::kDouble);
    largest_ = largest_.defined() ? at::maximum(largest_, largest) : largest;
  }

  // The global batch's largest activation; the mean over the measured steps of a log interval is what is logged.
  void add_range(Metrics& metrics, const StepContext& at) {
    if (!watched(at)) return;
    Tensor largest = std::exchange(largest_, Tensor()).view({1});
    context_.world.all_reduce_max(largest);
    metrics.add("activation_max", largest.squeeze(0));
  }

  void step_critic(const Batch& batch, const std::vector<Tensor>& fakes, const StepContext& at, Metrics& metrics) {
    size_t part = 0;
    for_micro_batches(batch, context_.accumulate, [&](const Batch& micro, bool last) {
      const Tensor real = (*critic_)(micro.images.to(dtype_)), fake = (*critic_)(fakes[part++]);
      const Tensor l = hinge_critic(real, fake);
      critic_set_->backward(l / static_cast<double>(context_.accumulate), last);
      metrics.add("critic", l);
      metrics.add("logits_real", real.mean());
      metrics.add("logits_fake", fake.mean());
    });
    critic_set_->step(at.step);
  }

  const AutoencoderConfig config_;
  const TrainContext context_;
  const at::Device device_;
  const at::ScalarType dtype_;
  models::AutoencoderKL model_;
  Tensor logvar_;                     // [1]
  mutable TrainableSet set_;
  std::unique_ptr<PerceptualDistance> perceptual_;
  std::unique_ptr<models::PatchDiscriminator> critic_;
  std::unique_ptr<TrainableSet> critic_set_;
  Tensor largest_;                    // |activation| of this step's micro-batches so far
};

}  // namespace

LatentMoments measure_latents(const models::AutoencoderKL& model, const Tensor& images) {
  const NoGrad no_grad;
  Tensor sum;  // [3, Z]: of means, of their squares, of variances
  double count = 0;
  for (int64_t i = 0; i < images.size(0); i += 64) {
    const models::Posterior q = model.encode(images.slice(0, i, std::min<int64_t>(i + 64, images.size(0))));
    const Tensor m = q.mean.to(at::kDouble), v = q.logvar.to(at::kDouble).exp();  // [b, Z, h, w]
    const Tensor parts = at::stack({m.sum({0, 2, 3}), m.square().sum({0, 2, 3}), v.sum({0, 2, 3})}).to(at::kCPU);
    sum = sum.defined() ? sum + parts : parts;
    count += static_cast<double>(m.numel() / m.size(1));
  }
  FEW_CHECK(count > 0, "latent statistics of no images");
  const Tensor mean = sum[0] / count;
  return {.mean = mean, .variance = sum[1] / count - mean.square() + sum[2] / count};
}

models::AutoencoderKlConfig with_scaling(models::AutoencoderKlConfig c, const LatentMoments& m, LatentScaling scaling) {
  const auto listed = [](const Tensor& t) { return std::vector<double>(t.const_data_ptr<double>(), t.const_data_ptr<double>() + t.numel()); };
  const Tensor mean = m.mean.contiguous(), variance = m.variance.contiguous();
  if (!at::isfinite(variance).all().item<bool>() || variance.max().item<double>() <= 0)
    fail<NumericError>("the latents' deviation is zero or not finite: there is no scaling factor");
  if (scaling == LatentScaling::channels) {
    c.scaling_factor = 1, c.latents_mean = listed(mean), c.latents_std = listed(variance.clamp_min(1e-12).sqrt());
    return c;
  }
  // Law of total variance over the channels.
  c.scaling_factor = 1 / std::sqrt((variance + mean.square()).mean().item<double>() - std::pow(mean.mean().item<double>(), 2));
  return c;
}

void AutoencoderConfig::describe(config::Visitor& v) {
  static constexpr config::Choice kScalings[] = {{"global", 0}, {"channels", 1}};
  v.field("model", model, "encoder, latents and decoder");
  v.field("init", init, "run or model folder of an AutoencoderKL of the same form to go on from; empty: random weights");
  v.field("optimizer", optimizer, "AdamW and its schedule, of encoder and decoder");
  describe_precision(v, precision);
  v.field("recompute", recompute, "make each stage's activations again in backward instead of keeping them");
  v.field("kl_weight", kl_weight, "weight of the KL (nats an image) beside the likelihood summed over pixels", config::kNonNegative);
  v.field("logvar", logvar, "log of the scale of the likelihood: nll = (|x - x'| + perceptual) / exp(logvar) + logvar a pixel");
  v.field("learn_logvar", learn_logvar, "train logvar with the network");
  v.field("perceptual", perceptual, "distance in the activations of a frozen encoder, added to each pixel's absolute error");
  v.field("adversarial", adversarial, "PatchGAN term");
  v.field("range", range, "watch on float16's range in the decoder");
  v.field("scaling", scaling, "what the saved config.json scales latents by: one scaling_factor, or latents_mean and latents_std", kScalings);
  v.field("latent_samples", latent_samples, "training images it is measured on, with the EMA weights, at every checkpoint", config::kAtLeastOne);
  v.check(!(recompute && range.penalty > 0), "recompute", "range.penalty needs the activations: set recompute: false or penalty: 0");
}

std::unique_ptr<Trainer> AutoencoderConfig::build(const TrainContext& context) const {
  return std::make_unique<AutoencoderTrainer>(*this, context);
}

std::unique_ptr<TrainerConfig> make_autoencoder() { return std::make_unique<AutoencoderConfig>(); }

}  // namespace fewstep
