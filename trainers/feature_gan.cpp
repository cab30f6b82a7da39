#include "trainers/feature_gan.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "src/base/error.h"
#include "src/base/log.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "trainers/gan_features.h"
#include "trainers/teacher_images.h"
#include "trainers/trainable_set.h"

namespace fewstep {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kTurnsOfAStep = 16;
constexpr uint64_t kGanSeedOffset = 7;
// Branches of the augmentation: what a turn shows to the heads has parameters of its own.
constexpr int64_t kRealSide = 0, kFakeSide = 1, kGeneratorSide = 3;

GanCondition resolved_condition(GanCondition wanted, const pipelines::Conditioner& conditioner) {
  if (wanted == GanCondition::automatic) return conditioner.pooled_width() > 0 ? GanCondition::pooled : GanCondition::context_mean;
  if (wanted == GanCondition::pooled && conditioner.pooled_width() == 0)
    fail<ConfigError>("gan.condition: pooled, but {} has no pooled text; take context_mean, or none", conditioner.description());
  return wanted;
}

int64_t condition_width(GanCondition condition, const pipelines::Conditioner& conditioner) {
  if (condition == GanCondition::none) return 0;
  return condition == GanCondition::pooled ? conditioner.pooled_width() : conditioner.context_width();
}

// The heads learn from the first step on at which they are used: their schedule spans the rest.
Horizon rest_of_horizon(const Horizon& whole, int64_t begin) {
  const int64_t last = whole.first + whole.steps, first = std::clamp(begin, whole.first, std::max(whole.first, last - 1));
  return {first, std::max<int64_t>(1, last - first)};
}

bool all_finite(const Tensor& x) { return !x.defined() || at::isfinite(x).all().item<bool>(); }

// Sum and number of the rows of `values` [B] at which `rows` (bool [B]) holds.
void add_gan_rows(Metrics& metrics, const std::string& name, const Tensor& values, const Tensor& rows) {
  metrics.add(name, at::where(rows.to(values.device()), values, at::zeros_like(values)).sum(), static_cast<double>(rows.sum().item<int64_t>()));
}

}  // namespace

struct FeatureGan::Impl {
  // Pictures of the real side as the heads see them, before augmentation.
  struct Side {
    Tensor images, text;  // [B, C, H, W], [B, P]
    Tensor real;          // bool [B], CPU: training images; the others are the teacher's
    int64_t same_sample = 0;
  };

  Impl(const FeatureGanConfig& c, const pipelines::DiffusionModel& m, const diffusion::StudentSchedule& schedule, const fs::path& teacher_folder,
       const TrainContext& t)
      : config(c), model(m), context(t), device(t.world.device()), dtype(m.unet->parameters().front().tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat),
        condition(resolved_condition(c.condition, *m.conditioner)),
        features(c.features, c.blocks, c.side, m.latent_space->image_channels(), "gan.features"), heads(head_config()) {
    for (int64_t k = 0; k < schedule.steps(); ++k)
      rungs.push_back(c.weight * (c.rung_weights.empty() ? (c.rung_law == RungLaw::alpha ? schedule.alpha(k) : 1.0)
                                                         : c.rung_weights[std::min(static_cast<size_t>(k), c.rung_weights.size() - 1)]));
    if (!c.rung_weights.empty() && static_cast<int64_t>(c.rung_weights.size()) != schedule.steps())
      fail<ConfigError>("gan.rung_weights: {} weights for {} rungs", c.rung_weights.size(), schedule.steps());
    features.to(device, dtype);
    heads.to(dtype);
    set.emplace("discriminator", start_network(heads, context, kGanSeedOffset), c.optimizer, context.world,
                rest_of_horizon(context.horizon, c.start_step - c.critic_lead));
    check_sizes();
    if (c.real_share < 1) open_teacher_images(teacher_folder);
    check_virtual_batches();
  }

  models::FeatureDiscriminatorConfig head_config() const {
    models::FeatureDiscriminatorConfig h = config.heads;
    h.channels = features.channels();
    h.text_width = condition_width(condition, *model.conditioner);
    h.validate("gan.heads");
    return h;
  }

  // Pixels of every size of picture there is.
  std::vector<BucketSize> picture_sizes() const {
    std::vector<BucketSize> sizes = context.train.buckets();
    if (!sizes.empty()) return sizes;
    const Sample first = context.train.get(0, context.seed, 0);
    const int64_t f = first.image.defined() ? 1 : model.latent_space->factor();
    const Tensor& seen = first.image.defined() ? first.image : first.latent_mean;
    return {{seen.size(1) * f, seen.size(2) * f}};
  }

  void check_sizes() const {
    const int64_t f = model.latent_space->factor();
    for (const BucketSize& size : picture_sizes())
      if (config.crop.size > 0) latent_windows(config.crop, at::zeros({1}, at::kLong), size.height / f, size.width / f, {});
  }

  void open_teacher_images(const fs::path& teacher_folder) {
    teacher.emplace(config.teacher_images);
    if (!config.any_teacher) teacher->check_teacher(teacher_folder);
    for (const BucketSize& size : picture_sizes()) teacher->check_size(model.latent_space->image_channels(), size.height, size.width);
    by_id = teacher->same_samples(context.train);
    const int64_t own = by_id ? std::min(teacher->size(), context.train.size()) : 0;
    log::info("gan: {} teacher images of {} ({}); {} of the {} training samples find their own, the others image (id mod {}), each "
              "with the caption it was made from", teacher->size(), teacher->facts().model_name, teacher->path().string(), own, context.train.size(), teacher->size());
  }

  void check_virtual_batches() const {
    if (config.heads.norm != "batch_local") return;
    const int64_t micro = context.batch_size / context.world.size() / context.accumulate;
    if (micro == 1)
      log::warn("gan.heads: with one sample a device and micro-batch batch_local is instance norm; take norm: group");
    else if (micro % config.heads.virtual_batch != 0)
      log::warn("gan.heads: virtual batches of {} do not divide the {} samples a device and micro-batch: results depend on the number "
                "of ranks", config.heads.virtual_batch, micro);
  }

  int64_t key_step(const GanBatch& on) const {
    FEW_CHECK(on.turn >= 0 && on.turn < kTurnsOfAStep, "turn {} of a step", on.turn);
    return on.at.step * kTurnsOfAStep + on.turn;
  }

  // Places in the global batch; int64 [B], CPU.
  Tensor positions(const GanBatch& on) const {
    return (at::arange(on.batch.size(), at::kLong) + on.first) * context.world.size() + context.world.rank();
  }

  // Keys whose order makes the virtual batches: place q of this micro-batch over all ranks goes to batch q mod G. Ranks take
  // every W-th place, so that with G a multiple of W the batches are those of one rank.
  Tensor group_keys(const GanBatch& on) const {
    const int64_t all = on.batch.size() * context.world.size(), G = (all + config.heads.virtual_batch - 1) / config.heads.virtual_batch;
    const Tensor q = positions(on) - on.first * context.world.size();
    return q.remainder(G) * all + q;
  }

  Tensor text_of(const models::UNetConditions& c) const {
    if (condition == GanCondition::none) return {};
    const Tensor text = condition == GanCondition::pooled ? c.pooled : c.context.mean(1);
    return text.detach().to(device, dtype);
  }

  Tensor decode(const Tensor& latents) const {
    const bool vae = model.latent_space->kind() == "vae";  // its weights are float32
    return model.latent_space->decode(vae ? latents.to(at::kFloat) : latents).to(dtype);
  }

  TwoStageOptions two_stages(const GanBatch& on) const {
    return {.crop = config.crop, .key = {.seed = on.at.seed, .step = key_step(on)}, .decode_part = config.decode_part};
  }

  // Decoded windows without gradient, `decode_part` at a time.
  Tensor decoded(const Tensor& latents, const Tensor& ids, const GanBatch& on) const {
    const NoGrad no_grad;
    const Tensor z = latents.detach().to(device, dtype);
    const TwoStageOptions o = two_stages(on);
    std::optional<LatentWindows> windows;
    if (o.crop.size > 0) windows = latent_windows(o.crop, ids, z.size(2), z.size(3), o.key);
    std::vector<Tensor> parts;
    for (const Tensor& part : (windows ? take_windows(z, *windows) : z).split(o.decode_part > 0 ? o.decode_part : z.size(0))) parts.push_back(decode(part));
    const Tensor images = at::cat(parts);
    return windows ? trim_to_windows(images, *windows) : images;
  }

  // The same windows of whole pictures.
  Tensor windows_of(const Tensor& images, const Tensor& ids, const GanBatch& on) const {
    const Tensor whole = images.to(device, dtype);
    if (config.crop.size == 0) return whole;
    const int64_t f = model.latent_space->factor();
    const TwoStageOptions o = two_stages(on);
    return take_pixel_windows(whole, latent_windows(o.crop, ids, whole.size(2) / f, whole.size(3) / f, o.key), f);
  }

  Tensor real_pictures(const Batch& batch, const Tensor& rows, const Tensor& ids, const GanBatch& on) const {
    if (batch.images.defined()) return windows_of(batch.images.index_select(0, rows.to(batch.images.device())), ids, on);
    const auto taken = [&](const Tensor& x) { return x.defined() ? x.index_select(0, rows.to(x.device())) : x; };
    return decoded(model.latent_space->from_posterior(taken(batch.latent_mean), taken(batch.latent_std)), ids, on);  // cached: as good as its latents
  }

  // [C, H, W] of the batch's whole pictures.
  std::vector<int64_t> picture_shape(const Batch& batch) const {
    const int64_t f = batch.images.defined() ? 1 : model.latent_space->factor();
    const Tensor& seen = batch.images.defined() ? batch.images : batch.latent_mean;
    return {model.latent_space->image_channels(), seen.size(2) * f, seen.size(3) * f};
  }

  Side real_side(const GanBatch& on) const {
    const NoGrad no_grad;
    const Tensor ids = on.batch.ids.to(at::kCPU);
    Side side{.images = {}, .text = text_of(on.conditions),
              .real = real_places(positions(on), context.batch_size, config.real_share, on.at.seed, key_step(on))};
    const Tensor own = side.real.nonzero().squeeze(1), others = side.real.logical_not().nonzero().squeeze(1);
    const auto put = [&](const Tensor& rows, const Tensor& images) {
      if (!side.images.defined()) {
        std::vector<int64_t> shape = images.sizes().vec();
        shape[0] = ids.size(0);
        side.images = at::empty(shape, images.options());
      }
      side.images.index_copy_(0, rows.to(device), images);
    };
    if (own.numel() > 0) put(own, real_pictures(on.batch, own, ids.index_select(0, own), on));
    if (others.numel() == 0) return side;
    const Tensor wanted = ids.index_select(0, others);
    const TeacherImages::Picked picked = teacher->pick(wanted, picture_shape(on.batch), by_id);
    put(others, windows_of(picked.images, wanted, on));
    side.same_sample = picked.same_sample;
    if (side.text.defined()) side.text = with_own_captions(side.text, on.batch, others, picked);
    return side;
  }

  // Rows of the teacher's images get the text of the caption (class models: the class) that the image was made from.
  Tensor with_own_captions(const Tensor& text, const Batch& batch, const Tensor& rows, const TeacherImages::Picked& picked) const {
    const bool classes = !model.conditioner->class_names().empty();
    const Tensor given = classes ? batch.labels.to(at::kCPU) : Tensor();
    std::vector<int64_t> to, from;
    for (int64_t i = 0; i < rows.size(0); ++i) {
      const int64_t row = rows[i].item<int64_t>();
      const bool same = classes ? given[row].item<int64_t>() == picked.labels[i].item<int64_t>()
                                : batch.captions.at(static_cast<size_t>(row)) == picked.captions[static_cast<size_t>(i)];
      if (!same) to.push_back(row), from.push_back(i);
    }
    if (to.empty()) return text;
    const auto taken = [&](const Tensor& x) { return x.defined() ? x.index_select(0, at::tensor(to, at::kLong).to(x.device())) : x; };
    pipelines::ConditionInput input;
    for (const int64_t i : from) input.captions.push_back(picked.captions[static_cast<size_t>(i)]);
    if (classes) input.labels = picked.labels.index_select(0, at::tensor(from, at::kLong)).to(batch.labels.device());
    input.micro = taken(batch.micro), input.aesthetic = taken(batch.aesthetic);
    return text.index_copy(0, at::tensor(to, at::kLong).to(device), text_of((*model.conditioner)(input)));
  }

  AugmentationDraws draws(const Tensor& images, const GanBatch& on, int64_t branch) const {
    return draw_augmentation(config.augmentation, on.batch.ids, images.size(2), images.size(3),
                             {.seed = on.at.seed, .step = key_step(on), .branch = branch});
  }

  // The discriminator: augmentation, frozen features, heads.
  Tensor logits(const Tensor& images, const AugmentationDraws& drawn, const Tensor& text, const Tensor& keys) const {
    const Tensor seen = config.augmented ? augment(images, config.augmentation, drawn) : images;
    std::vector<Tensor> taps;
    {
      const Autocast autocast(device.type(), at::kBFloat16, config.autocast && dtype == at::kFloat);
      taps = features(seen);
    }
    for (Tensor& tap : taps) tap = tap.to(dtype);
    return heads(taps, text, keys);
  }

  // One step of every power iteration a turn of the critic, and all passes of the turn with the same weights: the number of
  // steps depends on no batch split, and both branches of R1 see one network.
  void advance_power_iterations() {
    const NoGrad no_grad;
    heads.visit([](const std::string&, nn::Module& module) {
      if (const auto* layer = dynamic_cast<const nn::SpectralLayer*>(&module)) layer->weight();
    });
  }

  [[noreturn]] void not_finite(const char* what, const GanBatch& on, std::initializer_list<std::pair<const char*, Tensor>> suspects) const {
    std::string seen;
    for (const auto& [name, tensor] : suspects)
      if (!all_finite(tensor)) seen += fmt::format("{}{}", seen.empty() ? "" : ", ", name);
    fail<NumericError>("gan: the {} is not finite (step {}, rung {}); not finite on the way: {}", what, on.at.step, on.rung,
                       seen.empty() ? "nothing before the loss" : seen);
  }

  double share() const { return static_cast<double>(context.world.size()) / static_cast<double>(context.batch_size); }

  const FeatureGanConfig config;
  const pipelines::DiffusionModel& model;
  const TrainContext context;
  const at::Device device;
  const at::ScalarType dtype;
  const GanCondition condition;
  GanFeatures features;
  models::FeatureDiscriminator heads;
  std::optional<TrainableSet> set;
  std::optional<TeacherImages> teacher;
  bool by_id = false;
  std::vector<double> rungs;
};

FeatureGan::FeatureGan(const FeatureGanConfig& config, const pipelines::DiffusionModel& model, const diffusion::StudentSchedule& schedule,
                       const fs::path& teacher_folder, const TrainContext& context)
    : impl_(std::make_unique<Impl>(config, model, schedule, teacher_folder, context)) {
  log::info("gan: {}", description());
}
FeatureGan::~FeatureGan() = default;

bool FeatureGan::generator_active(int64_t step) const { return step >= impl_->config.start_step; }
bool FeatureGan::critic_active(int64_t step) const { return step >= impl_->config.start_step - impl_->config.critic_lead; }

double FeatureGan::rung_weight(int64_t rung) const {
  FEW_CHECK(rung >= 0 && rung < static_cast<int64_t>(impl_->rungs.size()), "rung {} of {}", rung, impl_->rungs.size());
  return impl_->rungs[static_cast<size_t>(rung)];
}

PixelGradient FeatureGan::generator_turn(const Tensor& x0, const GanBatch& on, Metrics& metrics) {
  Impl& g = *impl_;
  const Tensor x = x0.detach().to(g.device, g.dtype), ids = on.batch.ids.to(at::kCPU);
  const double weight = rung_weight(on.rung), B = static_cast<double>(x.size(0));
  if (weight == 0) return {.gradient = at::zeros_like(x), .loss = at::zeros({}, x.options()), .images = {}};
  const Autocast off(g.device.type(), at::kBFloat16, false);
  const nn::EvalMode eval(g.heads);
  const nn::Frozen frozen(g.heads);
  const Tensor text = g.text_of(on.conditions), keys = g.group_keys(on);
  Tensor losses;  // [B]
  PixelGradient out = pixel_gradient(x, ids, [&](const Tensor& z) { return g.decode(z); }, [&](const Tensor& images) {
    const Tensor each = generator_loss(g.config.loss, g.logits(images, g.draws(images, on, kGeneratorSide), text, keys));
    losses = each.detach();
    return each.sum() * (weight * g.share());
  }, g.two_stages(on));
  if (!all_finite(out.loss) || !all_finite(out.gradient))
    g.not_finite("generator's loss or its gradient", on, {{"the student's x0", x}, {"decoded pictures", out.images}, {"text", text}, {"loss", losses}});
  metrics.add("gan_generator", losses.sum(), B);
  metrics.add("gan_gradient", out.gradient.flatten(1).norm(2, {1}).sum() / g.share(), B);
  return out;
}

void FeatureGan::critic_turn(const Tensor& x0, const Tensor& images, const GanBatch& on, bool last, Metrics& metrics) {
  Impl& g = *impl_;
  const Autocast off(g.device.type(), at::kBFloat16, false);
  const at::AutoGradMode grad_mode(true);
  if (on.first == 0) g.advance_power_iterations();
  const nn::EvalMode eval(g.heads);
  const Tensor ids = on.batch.ids.to(at::kCPU), keys = g.group_keys(on);
  const Tensor fake = images.defined() ? images.detach().to(g.dtype) : g.decoded(x0, ids, on);
  const Impl::Side real = g.real_side(on);
  const AugmentationDraws real_draws = g.draws(real.images, on, kRealSide);
  const Tensor on_real = g.logits(real.images, real_draws, real.text, keys);
  const Tensor on_fake = g.logits(fake, g.draws(fake, on, kFakeSide), g.text_of(on.conditions), keys);
  const Tensor adversarial = critic_real_loss(g.config.loss, on_real).sum() + critic_fake_loss(g.config.loss, on_fake).sum();
  const auto B = static_cast<double>(ids.size(0));
  Tensor total = adversarial;
  if (g.config.r1_weight > 0) {
    const Tensor noise = normal_by_id(ids, real.images.sizes().slice(1), on.at.seed, Stream::discriminator, g.key_step(on)).to(real.images.options());
    const Critic critic = [&](const CriticInput& in) { return g.logits(in.x0, real_draws, real.text, keys); };
    const Tensor r1 = approximate_r1(critic, {.x0 = real.images, .t = {}, .noise = {}}, noise, g.config.r1_alpha, on_real).sum();
    total = total + g.config.r1_weight * r1;
    metrics.add("gan_r1", r1, B);
  }
  if (!all_finite(total))
    g.not_finite("critic's loss", on, {{"the student's pictures", fake}, {"real side", real.images}, {"text", real.text}, {"logits of the real side", on_real}, {"logits of the fakes", on_fake}});
  g.set->backward(total * g.share(), last);
  metrics.add("gan_critic", adversarial, B);
  const Tensor others = real.real.logical_not(), all = at::ones_like(real.real);
  const auto note = [&](const char* name, const Tensor& values, const Tensor& rows, bool positive) {
    const Tensor mean = values.detach().flatten(1).to(at::kDouble);
    add_gan_rows(metrics, fmt::format("gan_logit_{}", name), mean.mean(1), rows);
    add_gan_rows(metrics, fmt::format("gan_accuracy_{}", name), (positive ? mean.gt(0) : mean.lt(0)).to(at::kDouble).mean(1), rows);
  };
  note("real", on_real, real.real, true), note("teacher", on_real, others, true), note("fake", on_fake, all, false);
  metrics.add("gan_same_sample", static_cast<double>(real.same_sample), static_cast<double>(others.sum().item<int64_t>()));
}

void FeatureGan::step(const StepContext& at, Metrics& metrics) {
  metrics.add("gan_grad_norm", impl_->set->step(at.step));
  metrics.add("gan_lr", impl_->set->learning_rate(at.step));
}

void FeatureGan::add_state(std::map<std::string, TensorMap>& files) const {
  impl_->set->add_state(files);
  for (const auto& [name, tensor] : impl_->heads.buffers()) files["weights"].emplace("discriminator." + name, tensor.detach());
  files["gan"] = {{"features", impl_->features.sums()}};
}

void FeatureGan::load_state(const std::map<std::string, TensorMap>& files) {
  const NoGrad no_grad;
  const auto gan = files.find("gan");
  if (gan == files.end() || !gan->second.contains("features"))
    fail<DataError>("the checkpoint has no gan.safetensors: it was written without a discriminator");
  const Tensor sums = impl_->features.sums(), &then = gan->second.at("features");
  if (!then.sizes().equals(sums.sizes()) || !at::allclose(then, sums, 1e-9, 1e-9))
    fail<DataError>("gan.features: {} is not the network whose features this run's discriminator reads: it has other weights", impl_->config.features);
  impl_->set->load_state(files);
  const TensorMap& weights = files.at("weights");
  for (const auto& [name, tensor] : impl_->heads.buffers()) {
    const auto found = weights.find("discriminator." + name);
    if (found == weights.end() || !found->second.sizes().equals(tensor.sizes()))
      fail<DataError>("the checkpoint's weights.safetensors has no 'discriminator.{}' of [{}]", name, c10::str(tensor.sizes()));
    tensor.copy_(found->second);
  }
}

const models::FeatureDiscriminator& FeatureGan::heads() const { return impl_->heads; }

double FeatureGan::feature_flops() const {
  const BucketSize size = impl_->picture_sizes().front();
  const int64_t window = impl_->config.crop.size * impl_->model.latent_space->factor();
  return impl_->features.forward_flops(window > 0 ? window : size.height, window > 0 ? window : size.width);
}

std::string FeatureGan::description() const {
  const Impl& g = *impl_;
  const char* told = g.condition == GanCondition::none ? "told nothing" : g.condition == GanCondition::pooled ? "told the pooled text" : "told the mean context";
  return fmt::format("features of {}; heads of {} parameters, {}; {:.0f} % of the real side are training images", g.features.description(),
                     g.heads.parameter_count(), told, 100 * g.config.real_share);
}

}  // namespace fewstep
