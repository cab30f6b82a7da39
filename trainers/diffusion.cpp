#include "trainers/diffusion.h"

#include <cmath>

#include "datasets/loader.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/diffusion/fixed_noise.h"
#include "src/diffusion/scheduler_config.h"
#include "src/nn/lora.h"
#include "src/pipelines/draw_latents.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "trainers/diffusion_grid.h"
#include "trainers/micro_batches.h"
#include "trainers/trainable_set.h"

namespace fewstep {
namespace fs = std::filesystem;
namespace {

constexpr const char* kDiffusionAdapter = "diffusion";

// One noised micro-batch.
struct Noised {
  Tensor x0, noise, x_t;  // [B, C, h, w]
  Tensor t;               // [B]
};

// "loss[t<0.1]" ... "loss[t<1.0]": slices of the trained range by their upper ends, with the decimals that tell them apart.
std::vector<std::string> level_names(const diffusion::TimestepSampling& range, int64_t count) {
  const double width = (range.max - range.min) / static_cast<double>(count);
  const auto top = [&](int64_t i) { return range.min + width * static_cast<double>(i + 1); };
  int decimals = 1;
  const auto rough = [&](int64_t i) {
    const double scaled = top(i) * std::pow(10.0, decimals);
    return std::abs(scaled - std::round(scaled)) > 1e-6;
  };
  for (int64_t i = 0; i < count && decimals < 4;) rough(i) ? (++decimals, i = 0) : ++i;
  std::vector<std::string> names;
  for (int64_t i = 0; i < count; ++i) names.push_back(fmt::format("loss[t<{:.{}f}]", top(i), decimals));
  return names;
}

class DiffusionTrainer : public Trainer {
 public:
  DiffusionTrainer(const DiffusionConfig& config, const TrainContext& context)
      : task_(config.task), context_(context), base_(config.start.folder), device_(context.world.device()),
        model_(start_diffusion(config.start, context, config.task.precision)),
        tuning_(*model_.unet, config.task.lora, kDiffusionAdapter, context.seed),
        level_names_(level_names(task_.timesteps, task_.validation_levels)),
        set_("diffusion", trainable(), config.task.optimizer, context.world, context.horizon) {
    model_.sampling = task_.sample.sampling;
    diffusion::scheduler_json({model_.schedule.config(), model_.prediction, model_.sampling});  // ConfigError now, not when saving
    diffusion::sample_timesteps(task_.timesteps, model_.schedule, at::zeros({1, 1}));            // likewise
    model_.unet->set_recompute(task_.recompute);
    log::info("diffusion: {} of {} parameters trained, {:.3g} GFLOP forward an image; {}; {}; {} schedule, predicting {}",
              count_elements(set_.parameters()), parameter_count(), forward_flops() * 1e-9,
              model_.latent_space->description(), model_.conditioner->description(),
              diffusion::name_of(model_.schedule.config().kind), diffusion::name_of(model_.prediction));
  }

  // Sum over this rank's samples / samples of the global batch, times ranks: the average over ranks is the global mean.
  Metrics step(const Batch& batch, const StepContext& at) override {
    Metrics metrics;
    int64_t first = 0;
    for_micro_batches(batch, context_.accumulate, [&](const Batch& micro, bool last) {
      const Tensor ids = micro.ids.to(at::kCPU);
      const Tensor x0 = latents(micro, {.ids = ids, .seed = at.seed, .step = at.step});
      const Noised n = noised(x0, ids, draw_timesteps(ids, first, at), at);
      const pipelines::ConditionDrop drop = pipelines::draw_drop(task_.dropout, ids, at.seed, at.step);
      const Tensor output = predict(n.x_t, n.t, micro, drop);
      const Tensor loss = diffusion::diffusion_loss(task_.loss, model_.prediction, model_.schedule, output, target(n), n.t).sum();
      set_.backward(loss * (static_cast<double>(context_.world.size()) / static_cast<double>(context_.batch_size)), last);
      metrics.add("loss", loss, static_cast<double>(micro.size()));
      first += micro.size();
    });
    metrics.add("grad_norm", set_.step(at.step));
    metrics.add("lr", set_.learning_rate(at.step));
    return metrics;
  }

  // Mean squared error without weights, dropout and noise offset, so that stages and weightings compare. Each sample has its own
  // noise and one noise level for good, spread evenly over the slices of the axis.
  Metrics validate(const Batch& batch) override {
    const TrainableSet::EmaScope ema(set_);
    const Tensor ids = batch.ids.to(at::kCPU);
    const Tensor slice = ids.remainder(task_.validation_levels);
    const diffusion::FixedNoise fixed{.ids = ids, .seed = context_.seed, .levels = task_.validation_levels,
                                      .min = task_.timesteps.min, .max = task_.timesteps.max};
    const Tensor loss = diffusion::fixed_noise_loss(model_.schedule, model_.prediction, fixed, slice, latents(batch, {}),
        [&](const Tensor& x_t, const Tensor& t) { return predict(x_t, t, batch, {}); }).to(at::kCPU);
    Metrics metrics;
    metrics.add("loss", loss.sum(), static_cast<double>(batch.size()));
    for (int64_t i = 0; i < task_.validation_levels; ++i) {
      const Tensor here = slice.eq(i);
      metrics.add(level_names_[static_cast<size_t>(i)], loss.masked_select(here).sum(), static_cast<double>(here.sum().item<int64_t>()));
    }
    return metrics;
  }

  Tensor sample_grid(uint64_t seed) override {
    const Dataset* data = context_.validation && context_.validation->size() > 0 ? context_.validation : &context_.train;
    const TrainableSet::EmaScope ema(set_);
    const nn::AdapterScope adapter(tuning_.active());
    return draw_grid(model_, task_.sample, task_.timesteps, *data, seed);
  }

  void save_model(const fs::path& folder) const override {
    const TrainableSet::EmaScope ema(set_);
    pipelines::save_diffusion_model(folder, {.unet = model_.unet->config(), .unet_state = tuning_.merged_state(),
                                             .conditioner = *model_.conditioner, .latent_space = *model_.latent_space,
                                             .schedule = model_.schedule, .prediction = model_.prediction,
                                             .sampling = model_.sampling});
    tuning_.save_adapter(folder / "adapter", base_, "");
  }

  std::map<std::string, TensorMap> state() const override {
    std::map<std::string, TensorMap> files;
    set_.add_state(files);
    if (task_.lora.on()) files["start"] = {{"sums", sums_of_the_frozen()}};
    return files;
  }

  // An adapter's checkpoint does not hold the frozen weights: they must be those of the same start again.
  void load_state(const std::map<std::string, TensorMap>& files) override {
    if (task_.lora.on()) {
      const auto start = files.find("start");
      if (start == files.end() || !start->second.contains("sums")) fail<DataError>("the checkpoint has no start.safetensors");
      if (!start->second.at("sums").equal(sums_of_the_frozen()))
        fail<DataError>("trainer.start: {} is not the model this run started from: it has other weights", base_);
    }
    set_.load_state(files);
  }

  // Forward 1, gradient of inputs 1, gradient of weights 1 (adapters have few), and with recompute the forward again. Text
  // encoders and VAEs are not counted.
  double flops_per_sample() const override {
    return ((task_.lora.on() ? 2 : 3) + (task_.recompute ? 1 : 0)) * forward_flops();
  }

 private:
  NamedTensors trainable() {
    NamedTensors out;
    for (const auto& [name, tensor] : tuning_.parameters()) out.push_back({"unet." + name, tensor});
    nn::Module* learned = model_.conditioner->trainable();
    if (!learned) return out;
    const bool frozen = task_.freeze_conditioner || task_.lora.on();
    learned->requires_grad(!frozen);
    if (!frozen)
      for (const auto& [name, tensor] : learned->parameters()) out.push_back({"conditioner." + name, tensor});
    return out;
  }

  Tensor latents(const Batch& batch, const pipelines::LatentDraw& draw) const {
    const Tensor z = batch.latent_mean.defined() ? model_.latent_space->from_posterior(batch.latent_mean, batch.latent_std, draw)
                                                 : model_.latent_space->encode(batch.images, draw);
    return z.to(device_, dtype_of(task_.precision));
  }

  // `first`: place of the micro-batch in this rank's share, whose sample i is number rank + i * ranks of the global batch.
  Tensor draw_timesteps(const Tensor& ids, int64_t first, const StepContext& at) const {
    Tensor u = uniform_by_id(ids, diffusion::kTimestepColumns, at.seed, Stream::timestep, at.step);
    if (task_.timesteps.stratified) {
      const Tensor slots = at::arange(first, first + ids.size(0)) * context_.world.size() + context_.world.rank();
      u = diffusion::stratify(u, slots, context_.batch_size);
    }
    return diffusion::sample_timesteps(task_.timesteps, model_.schedule, u).to(device_);
  }

  Noised noised(const Tensor& x0, const Tensor& ids, const Tensor& t, const StepContext& at) const {
    // One row of numbers a sample: its noise, and behind it one number a channel for the offset, which so moves nothing else.
    const int64_t C = x0.size(1), elements = x0.numel() / x0.size(0);
    const Tensor drawn = normal_by_id(ids, {elements + C}, at.seed, Stream::noise, at.step).to(x0.options());
    Noised n{.x0 = x0, .noise = drawn.narrow(1, 0, elements).view(x0.sizes()), .x_t = {}, .t = t};
    n.noise = diffusion::offset_noise(n.noise, drawn.narrow(1, elements, C).view({-1, C, 1, 1}), task_.loss.noise_offset);
    n.x_t = diffusion::add_noise(model_.schedule, n.x0, n.noise, n.t);
    return n;
  }

  Tensor predict(const Tensor& x_t, const Tensor& t, const Batch& batch, const pipelines::ConditionDrop& drop) const {
    const Autocast autocast(device_.type(), at::kBFloat16, task_.precision == Precision::bfloat16);
    const nn::AdapterScope adapter(tuning_.active());
    const models::UNetConditions conditions = (*model_.conditioner)(condition_input(batch), drop);
    return (*model_.unet)(x_t, t, pipelines::to_device(conditions, device_));
  }

  Tensor target(const Noised& n) const {
    return diffusion::prediction_target(model_.prediction, n.x0, n.noise, model_.schedule.alpha(n.t), model_.schedule.sigma(n.t));
  }

  Tensor sums_of_the_frozen() const {
    const NoGrad no_grad;
    std::vector<Tensor> sums;
    for (const auto& [name, tensor] : model_.unet->parameters()) sums.push_back(tensor.to(at::kDouble).sum().to(at::kCPU));
    return at::stack(sums);
  }

  int64_t parameter_count() const {  // of what could be trained
    const nn::Module* learned = model_.conditioner->trainable();
    return model_.unet->parameter_count() + (learned ? learned->parameter_count() : 0);
  }
  double forward_flops() const {
    const Sample first = context_.train.get(0, context_.seed, 0);
    const int64_t f = model_.latent_space->factor();
    const bool cached = first.latent_mean.defined();
    const int64_t h = cached ? first.latent_mean.size(1) : first.image.size(1) / f, w = cached ? first.latent_mean.size(2) : first.image.size(2) / f;
    return model_.unet->forward_flops(h, w, model_.conditioner->context_length());
  }

  const DiffusionTaskConfig task_;
  const TrainContext context_;
  const std::string base_;
  const at::Device device_;
  pipelines::DiffusionModel model_;
  const Tuning tuning_;
  const std::vector<std::string> level_names_;
  mutable TrainableSet set_;
};

}  // namespace

void describe(config::Visitor& v, SampleGridConfig& c) {
  describe(v, c.sampling);
  v.field("guidance", c.guidance, "classifier-free guidance scale; 1: conditional only", config::kNonNegative);
  v.field("guidance_rescale", c.guidance_rescale, "share of the guided prediction brought to the conditional one's deviation", config::kUnit);
  v.field("columns", c.columns, "classes, or captions of the held-out split", config::kAtLeastOne);
  v.field("rows", c.rows, "samples of each", config::kAtLeastOne);
  v.field("batch_size", c.batch_size, "pictures drawn together", config::kAtLeastOne);
}

void DiffusionConfig::describe(config::Visitor& v) {
  describe_start(v, start);
  v.field("timesteps", task.timesteps, "which noise levels are trained on");
  v.field("loss", task.loss, "weights of the squared error, noise offset");
  v.field("dropout", task.dropout, "probabilities that a sample loses a condition, each drawn by itself; for guidance");
  v.field("freeze_conditioner", task.freeze_conditioner, "a class table or a small text encoder stays as it is");
  v.field("optimizer", task.optimizer, "AdamW, its schedule, moving average");
  describe_precision(v, task.precision);
  v.field("recompute", task.recompute, "make activations of blocks again in backward instead of keeping them");
  v.field("lora", task.lora, "low-rank adapters in place of the weights; targets are ends of names of the UNet's layers");
  v.field("validation_levels", task.validation_levels, "slices of the noise axis whose validation loss is told apart", config::kAtLeastOne);
  v.field("sample", task.sample, "sample pictures, and the scheduler of the saved model");
  v.check(!task.lora.on() || !start.folder.empty(), "lora", "an adapter needs a model it belongs to: set trainer.start");
}

std::unique_ptr<Trainer> DiffusionConfig::build(const TrainContext& context) const {
  return std::make_unique<DiffusionTrainer>(*this, context);
}

std::unique_ptr<TrainerConfig> make_diffusion() { return std::make_unique<DiffusionConfig>(); }

}  // namespace fewstep
