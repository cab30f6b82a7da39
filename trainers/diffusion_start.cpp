#include "trainers/diffusion_start.h"

#include <cmath>

#include "datasets/latent_cache.h"
#include "datasets/loader.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/base/table.h"
#include "src/config/config.h"
#include "src/pipelines/conditioner_sdxl.h"
#include "src/pipelines/pipeline.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "trainers/captions.h"

namespace fewstep {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kMeasuredImages = 512;

struct NumberGroup {
  std::string_view name;
  bool pipelines::MicroSwitches::*on;
  int64_t count;
};
constexpr NumberGroup kGroups[] = {{"size", &pipelines::MicroSwitches::size, 2},  // in the order of the numbers
                                   {"crop", &pipelines::MicroSwitches::crop, 2},
                                   {"target", &pipelines::MicroSwitches::target, 2},
                                   {"aesthetic", &pipelines::MicroSwitches::aesthetic, 1}};

// Some training images of one size, in [-1, 1]; undefined where the data set holds latents.
Tensor some_images(const Dataset& data, uint64_t seed) {
  std::vector<int64_t> indices;
  const int64_t count = std::min(kMeasuredImages, data.size()), bucket = data.bucket_of(0);
  for (int64_t i = 0; i < count; ++i)
    if (data.bucket_of(i) == bucket) indices.push_back(i);
  return load_indices(data, indices, seed).images;
}

std::unique_ptr<pipelines::LatentSpace> make_latents(const DiffusionStartConfig& config, const TrainContext& context) {
  if (!context.resume.empty()) return pipelines::LatentSpace::load(context.resume, context.world.device());
  const Sample first = context.train.get(0, context.seed, 0);
  auto space = first.latent_mean.defined() ? config.latents->build(0, {})
                                           : config.latents->build(first.image.size(0), some_images(context.train, context.seed));
  space->to(context.world.device());
  return space;
}

std::unique_ptr<pipelines::Conditioner> make_conditioner(const DiffusionStartConfig& config, const TrainContext& context) {
  if (!context.resume.empty()) return pipelines::Conditioner::load(context.resume, context.world.device());
  pipelines::ConditionerStart start;
  start.class_names = context.train.class_names();
  start.train_tokenizer = [&](int64_t vocab_size) { return train_tokenizer(context.train, vocab_size, context.seed); };
  start.seed = context.seed + 1;
  auto conditioner = config.conditioner->build(start);
  conditioner->to(context.world.device());
  return conditioner;
}

// The side of the square of about as many latents: buckets are of one area.
int64_t square_side(const Sample& first, int64_t pixels_per_latent, int64_t multiple) {
  const bool cached = first.latent_mean.defined();
  const Tensor& grid = cached ? first.latent_mean : first.image;
  const double side = std::sqrt(static_cast<double>(grid.size(1) * grid.size(2))) / static_cast<double>(cached ? 1 : pixels_per_latent);
  const auto m = static_cast<double>(multiple);
  return std::max(multiple, static_cast<int64_t>(std::llround(side / m)) * multiple);
}

models::UNet2DConfig complete_unet(models::UNet2DConfig c, const pipelines::LatentSpace& latents, const pipelines::Conditioner& conditioner,
                              const Sample& first) {
  c.in_channels = c.out_channels = latents.channels();
  c.sample_size = square_side(first, latents.factor(), c.factor());
  pipelines::fit_conditioning(c, conditioner);
  c.validate("trainer.unet");
  return c;
}

pipelines::DiffusionModel from_scratch(const DiffusionStartConfig& config, const TrainContext& context) {
  auto latents = make_latents(config, context);
  auto conditioner = make_conditioner(config, context);
  const Sample first = context.train.get(0, context.seed, 0);
  const models::UNet2DConfig unet_config = complete_unet(config.unet, *latents, *conditioner, first);
  auto unet = std::make_unique<models::UNet2DConditionModel>(unet_config);
  unet->to(context.world.device());
  unet->initialise(context.seed);
  const int64_t pixels = unet_config.sample_size * latents->factor();
  pipelines::DiffusionModel model{.unet = std::move(unet), .conditioner = std::move(conditioner), .latent_space = std::move(latents),
                                  .schedule = diffusion::Schedule(config.schedule), .prediction = config.prediction, .sampling = {},
                                  .height = pixels, .width = pixels};
  pipelines::check_diffusion_parts(unet_config, *model.conditioner, *model.latent_space, "trainer");
  return model;
}

pipelines::DiffusionModel from_folder(const DiffusionStartConfig& config, const TrainContext& context) {
  const fs::path folder = pipelines::find_model(config.folder);
  pipelines::DiffusionModel model = pipelines::load_diffusion_model(folder, {.device = context.world.device()});
  if (model.prediction != config.prediction)
    fail<ConfigError>("trainer.start: {} predicts '{}', and trainer.prediction is '{}': set trainer.prediction={} (a network cannot "
                      "learn another prediction by going on), or start from another model", config.folder,
                      diffusion::name_of(model.prediction), diffusion::name_of(config.prediction), diffusion::name_of(model.prediction));
  // A schedule that was written into the run's config (zero terminal SNR, another shift) replaces the checkpoint's.
  diffusion::ScheduleConfig standard, own = config.schedule, checkpoint = model.schedule.config();
  const std::string wanted = config::to_yaml(own);
  if (wanted != config::to_yaml(standard) && wanted != config::to_yaml(checkpoint)) {
    log::info("diffusion: trainer.schedule replaces the schedule of {}", config.folder);
    model.schedule = diffusion::Schedule(own);
  }
  tell_more(model, config.add_numbers, context.seed);
  return model;
}

}  // namespace

void describe_start(config::Visitor& v, DiffusionStartConfig& c) {
  v.field("start", c.folder, "fine-tuning: run or model folder (diffusers' folders too); empty: new networks, of the keys below");
  v.field("unet", c.unet, "the network; channels, sample size and widths of the conditions follow from the other parts");
  v.field("latents", c.latents, "what the network sees of an image", pipelines::latent_space_kinds());
  v.field("conditioner", c.conditioner, "what the network is told: class, text, sizes", pipelines::conditioner_kinds());
  v.field("schedule", c.schedule, "noise schedule; with `start` and left alone: the checkpoint's");
  v.field("prediction", c.prediction, "what the network predicts; with `start`: must be the checkpoint's", diffusion::prediction_choices());
  v.field("add_numbers", c.add_numbers, "with `start`: numbers it was not told and this model is: size, crop, target, aesthetic; they start without effect");
  const bool anew = c.folder.empty();
  v.check(!anew || c.add_numbers.empty(), "add_numbers", "belongs to `start`: a new network is told what `conditioner.micro` says");
  v.check(!anew || c.latents, "latents", "must be given, or `start` to go on from");
  v.check(!anew || c.conditioner, "conditioner", "must be given, or `start` to go on from");
  v.check(anew || !c.latents, "latents", "comes from `start`: leave it out");
  v.check(anew || !c.conditioner, "conditioner", "comes from `start`: leave it out");
}

bool of_start(std::string_view key) {
  for (const std::string_view part : {"start", "add_numbers", "unet", "latents", "conditioner", "schedule", "prediction", "lora"})
    if (key == part || (key.starts_with(part) && key[part.size()] == '.')) return true;
  return false;
}

void tell_more(pipelines::DiffusionModel& model, const std::vector<std::string>& groups, uint64_t seed) {
  if (groups.empty()) return;
  const NoGrad no_grad;
  const pipelines::MicroSwitches before = model.conditioner->settings().micro;
  pipelines::MicroSwitches after = before;
  for (const std::string& name : groups) {
    const NumberGroup& group = find_entry(std::span<const NumberGroup>(kGroups), name, "trainer.add_numbers");
    if (before.*group.on) fail<ConfigError>("trainer.add_numbers: '{}': the model of trainer.start is told it already", name);
    after.*group.on = true;
  }
  model.conditioner->tell(after);
  models::UNet2DConfig config = model.unet->config();
  const bool had_vector = config.has_additions();
  pipelines::fit_conditioning(config, *model.conditioner);
  auto wider = std::make_unique<models::UNet2DConditionModel>(config);
  wider->initialise(seed);
  TensorMap weights;
  for (const auto& [name, tensor] : wider->state()) weights.emplace(name, tensor.clone());
  for (const auto& [name, tensor] : model.unet->state()) weights[name] = tensor.to(at::kCPU);
  if (had_vector) {  // columns: [pooled | numbers of the groups that are on]
    const Tensor old = weights.at("add_embedding.linear_1.weight");
    const int64_t pooled = model.conditioner->pooled_width(), dim = config.addition_time_embed_dim;
    const Tensor grown = at::zeros({old.size(0), config.projection_class_embeddings_input_dim}, old.options());
    grown.narrow(1, 0, pooled).copy_(old.narrow(1, 0, pooled));
    int64_t from = pooled, to = pooled;
    for (const NumberGroup& group : kGroups) {
      const int64_t width = group.count * dim;
      if (before.*group.on) grown.narrow(1, to, width).copy_(old.narrow(1, from, width)), from += width;
      if (after.*group.on) to += width;
    }
    weights["add_embedding.linear_1.weight"] = grown;
  } else {
    weights.at("add_embedding.linear_2.weight").zero_();
    weights.at("add_embedding.linear_2.bias").zero_();
  }
  wider->load(weights, "trainer.start");
  wider->to(model.unet->parameters().front().tensor.device());
  model.unet = std::move(wider);
}

pipelines::DiffusionModel start_diffusion(const DiffusionStartConfig& config, const TrainContext& context, Precision precision) {
  pipelines::DiffusionModel model = config.folder.empty() ? from_scratch(config, context) : from_folder(config, context);
  check_cached(model, context);
  model.unet->to(dtype_of(precision));
  model.unet->train(true);
  if (nn::Module* learned = model.conditioner->trainable()) learned->to(dtype_of(precision));
  return model;
}

void check_cached(const pipelines::DiffusionModel& model, const TrainContext& context) {
  for (const Dataset* data : {&context.train, context.validation}) {
    const auto* cache = data ? dynamic_cast<const LatentCache*>(&data->strict()) : nullptr;
    if (!cache) continue;
    const fs::path source = model.latent_space->source();
    if (source.empty())
      fail<ConfigError>("{}: cached latents of a VAE, but this model sees {}: cache it anew or train on the images",
                        cache->path().string(), model.latent_space->description());
    const fs::path encoders = model.conditioner->source();
    const bool texts = !cache->facts().text.empty() && !encoders.empty();
    cache->check(vae_identity(source), texts ? text_encoder_identity(encoders) : std::string());
  }
}

}  // namespace fewstep
