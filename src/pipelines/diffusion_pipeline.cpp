#include "src/pipelines/diffusion_pipeline.h"

#include <chrono>
#include <cmath>

#include "src/base/error.h"
#include "src/base/log.h"
#include "src/base/text.h"
#include "src/io/image.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::pipelines {
namespace fs = std::filesystem;
namespace {

// The part of `plan` that a picture noised by `strength` still has before it. At least one step: from exactly that
// level.
diffusion::SamplingPlan plan_after_noising(const diffusion::Schedule& schedule, const diffusion::SamplingPlan& plan,
                                           double strength) {
  if (strength >= 1) return plan;  // also where the first step starts at the end of the axis itself (flow)
  const double cut = diffusion::cut_timestep(schedule, 1 - strength);
  const diffusion::SamplingPlan rest = diffusion::refiner_part(plan, cut);
  if (rest.steps() > 0) return rest;
  return diffusion::continue_plan(schedule, plan, schedule.noise_ratio(std::min(cut, schedule.max_timestep())));
}

Tensor ids_of(std::span<const int64_t> ids) { return at::tensor(at::IntArrayRef(ids.data(), ids.size()), at::kLong); }

}  // namespace

DiffusionPipeline::DiffusionPipeline(const fs::path& folder, at::Device device)
    : folder_(folder), device_(device), model_(load_diffusion_model(folder, {.device = device})) {}

std::string DiffusionPipeline::description() const {
  return fmt::format(
      "diffusion, {} parameters, predicts {}, {}, {}", human_count(static_cast<double>(model_.unet->parameter_count())),
      diffusion::name_of(model_.prediction), model_.latent_space->description(), model_.conditioner->description());
}

DiffusionPipeline::Size DiffusionPipeline::size_of(const GenerateOptions& options) const {
  const DiffusionOptions& o = options.diffusion;
  const Size size{o.height > 0 ? o.height : model_.height, o.width > 0 ? o.width : model_.width};
  const int64_t factor = model_.latent_space->factor();
  if (size.height < 1 || size.width < 1)
    fail<ConfigError>("{}: the network does not say what size it was trained for; give height and width",
                      folder_.string());
  if (size.height % factor != 0 || size.width % factor != 0)
    fail<ConfigError>("height, width: {} x {} is not a multiple of {} (pixels of a latent); {} x {} is", size.height,
                      size.width, factor, (size.height + factor - 1) / factor * factor,
                      (size.width + factor - 1) / factor * factor);
  return size;
}

void DiffusionPipeline::check(const GenerateOptions& options) const {
  const DiffusionOptions& o = options.diffusion;
  refuse_autoregressive_keys(options, "a diffusion model");
  if (!(o.strength > 0 && o.strength <= 1)) fail<ConfigError>("strength: {} is not in (0, 1]", o.strength);
  if (!(o.handover > 0 && o.handover <= 1)) fail<ConfigError>("handover: {} is not in (0, 1]", o.handover);
  const MicroSwitches& micro = model_.conditioner->settings().micro;
  const auto told = [&](bool given, bool on, const char* key, const char* what) {
    if (given && !on && o.refiner.empty()) fail<ConfigError>("{}: this network is not told {}", key, what);
  };
  told(!o.original_size.empty(), micro.size, "original_size", "sizes");
  told(!o.crop.empty(), micro.crop, "crop", "crops");
  told(!o.target_size.empty(), micro.target, "target_size", "target sizes");
  told(o.aesthetic > 0, micro.aesthetic, "aesthetic", "aesthetic scores");
  told(o.negative_aesthetic > 0, micro.aesthetic, "negative_aesthetic", "aesthetic scores");
}

Tensor DiffusionPipeline::read_init_image(const std::string& file, Size size) const {
  const auto channels = model_.latent_space->image_channels() == 1 ? io::Channels::grey : io::Channels::rgb;
  Tensor image = io::read_image(file, channels);  // [C, H, W]
  const double scale = std::max(static_cast<double>(size.height) / static_cast<double>(image.size(1)),
                                static_cast<double>(size.width) / static_cast<double>(image.size(2)));
  const auto scaled = [&](int64_t side, int64_t least) {
    return std::max(least, static_cast<int64_t>(std::llround(static_cast<double>(side) * scale)));
  };
  image =
      io::resize(image, scaled(image.size(2), size.width), scaled(image.size(1), size.height), io::Resample::lanczos);
  return io::to_float(io::center_crop(image, size.width, size.height)).unsqueeze(0);
}

DrawRequest DiffusionPipeline::request(const DiffusionModel& model, const Prompts& prompts, Size size,
                                       const GenerateOptions& options) const {
  const DiffusionOptions& o = options.diffusion;
  const auto B = static_cast<int64_t>(prompts.texts.size());
  const Conditioner& conditioner = *model.conditioner;
  const auto scores = [&](double given, double own) { return at::full({B}, given > 0 ? given : own, at::kFloat); };
  ConditionInput input;
  input.captions = prompts.texts;
  input.micro = micro_rows(B, size.height, size.width, o.original_size, o.crop, o.target_size);
  input.aesthetic = scores(o.aesthetic, conditioner.settings().aesthetic);
  DrawRequest out;
  out.conditional = conditioner(input);
  if (options.guidance != 1) {
    ConditionInput negative = input;
    negative.aesthetic = scores(o.negative_aesthetic, conditioner.settings().negative_aesthetic);
    negative.captions.assign(prompts.texts.size(), o.negative_prompt);
    out.unconditional = o.negative_prompt.empty() ? conditioner.null(negative, o.unconditional) : conditioner(negative);
  }
  out.guidance = {options.guidance, o.guidance_rescale, o.guidance_from, o.guidance_to};
  const int64_t factor = model.latent_space->factor();
  out.channels = model.latent_space->channels(), out.height = size.height / factor, out.width = size.width / factor;
  out.sampling = o.sampling(model.sampling);
  out.sampling.tokens = out.height * out.width;
  out.plan = diffusion::make_plan(model.schedule, out.sampling);
  out.ids = prompts.ids, out.seed = prompts.seed;
  return out;
}

const DiffusionModel& DiffusionPipeline::refiner(const std::string& folder) {
  if (refiner_ && refiner_folder_ == folder) return *refiner_;
  auto loaded = std::make_unique<DiffusionModel>(load_diffusion_model(find_model(folder), {.device = device_}));
  const double difference = latent_difference(*model_.latent_space, *loaded->latent_space);
  if (!(difference <= kSameLatents))
    fail<ConfigError>(
        "refiner: {} works in another latent space ({}) than {} ({}): what both make of one picture differs "
        "by {:.0f} %; latents cannot be passed on between them",
        folder, loaded->latent_space->description(), folder_.string(), model_.latent_space->description(),
        100 * difference);
  refiner_ = std::move(loaded), refiner_folder_ = folder;
  return *refiner_;
}

void DiffusionPipeline::use_lora(const DiffusionOptions& options) {
  if (lora_ ? lora_->path() == options.lora && lora_->scale() == options.lora_scale : options.lora.empty()) return;
  if (lora_) model_ = load_diffusion_model(folder_, {.device = device_});
  lora_.reset();
  if (!options.lora.empty()) lora_ = std::make_unique<MergedLora>(model_, options.lora, options.lora_scale);
}

// Said once for every way of sampling.
void DiffusionPipeline::warn_of_other_sampling(const diffusion::SamplingPlan& plan, const DiffusionOptions& options,
                                               double guidance) {
  if (!lora_) return;
  const std::string what = lora_->differs(plan, options.sampling(model_.sampling).sampler, guidance);
  if (!what.empty() && what != warned_) log::warn("lora: {}: {}", lora_->path(), what);
  warned_ = what;
}

// The refiner goes on at the noise level where the base stopped, in its own schedule's scale, on its own steps.
DrawnLatents DiffusionPipeline::refine(const DrawnLatents& base, const diffusion::SamplingPlan& plan,
                                       const Prompts& prompts, Size size, const GenerateOptions& options) {
  const DiffusionModel& next = *refiner_;
  DrawRequest r = request(next, prompts, size, options);
  if (plan.ends_clean()) {
    log::warn(
        "the base's last step before the handover at {} already ends without noise: the refiner has nothing to do "
        "(raise sampling_steps)",
        options.diffusion.handover);
    return base;
  }
  r.plan = diffusion::continue_plan(next.schedule, r.plan, plan.ratio(plan.steps()));
  r.start = base.latents * (r.plan.alphas.front() / plan.alphas.back());
  r.stage = 1;
  DrawnLatents out = draw_latents(*next.unet, next.schedule, next.prediction, r);
  out.steps += base.steps, out.nfe += base.nfe;
  return out;
}

DrawnLatents DiffusionPipeline::draw(const Prompts& prompts, Size size, const GenerateOptions& options) {
  const DiffusionOptions& o = options.diffusion;
  DrawRequest r = request(model_, prompts, size, options);
  warn_of_other_sampling(r.plan, o, options.guidance);
  if (!o.init_image.empty()) {
    r.plan = plan_after_noising(model_.schedule, r.plan, o.strength);
    const auto B = static_cast<int64_t>(prompts.texts.size());
    const Tensor image = read_init_image(o.init_image, size).expand({B, -1, -1, -1});
    const Tensor clean = model_.latent_space->encode(image, {.ids = prompts.ids, .seed = prompts.seed}).to(device_);
    const Tensor noise = initial_noise(prompts.ids, clean.sizes().slice(1), prompts.seed).to(clean.options());
    r.start = r.plan.alphas.front() * clean + r.plan.sigmas.front() * noise;
  }
  if (o.refiner.empty()) return draw_latents(*model_.unet, model_.schedule, model_.prediction, r);

  refiner(o.refiner);
  const double cut = diffusion::cut_timestep(model_.schedule, o.handover);
  const diffusion::SamplingPlan whole = r.plan;
  r.plan = diffusion::base_part(whole, cut);
  if (r.plan.steps() == 0)  // a picture that is noised less than the handover: the refiner alone
    fail<ConfigError>("handover: the base has no step above timestep {}; sample the refiner alone, or raise strength",
                      cut);
  const DrawnLatents base = draw_latents(*model_.unet, model_.schedule, model_.prediction, r);
  return refine(base, r.plan, prompts, size, options);
}

Generated DiffusionPipeline::generate(const std::vector<std::string>& prompts, uint64_t seed,
                                      std::span<const int64_t> ids, const GenerateOptions& options) {
  check(options);
  use_lora(options.diffusion);
  FEW_CHECK(ids.size() == prompts.size() && !prompts.empty(), "{} prompts and {} ids", prompts.size(), ids.size());
  const NoGrad no_grad;
  const Size size = size_of(options);
  std::vector<Tensor> images, latents;
  Generated out;
  for (size_t start = 0; start < prompts.size(); start += static_cast<size_t>(options.batch_size)) {
    const size_t count = std::min(static_cast<size_t>(options.batch_size), prompts.size() - start);
    const Prompts part{
        {prompts.begin() + static_cast<ptrdiff_t>(start), prompts.begin() + static_cast<ptrdiff_t>(start + count)},
        ids_of(ids.subspan(start, count)),
        seed};
    const DrawnLatents drawn = draw(part, size, options);
    if (!at::isfinite(drawn.latents).all().item<bool>())
      fail<NumericError>("{}: the latents are not finite; are the network's weights whole?", folder_.string());
    const auto begin = std::chrono::steady_clock::now();
    images.push_back(io::to_bytes(model_.latent_space->decode(drawn.latents).to(at::kCPU, at::kFloat)));
    out.decode_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    latents.push_back(drawn.latents.to(at::kCPU));
    out.steps += static_cast<double>(static_cast<int64_t>(count) * drawn.steps);
    out.nfe += static_cast<double>(static_cast<int64_t>(count) * drawn.nfe);
  }
  out.steps /= static_cast<double>(prompts.size()), out.nfe /= static_cast<double>(prompts.size());
  out.images = at::cat(images), out.latents = at::cat(latents);
  return out;
}

}  // namespace fewstep::pipelines
