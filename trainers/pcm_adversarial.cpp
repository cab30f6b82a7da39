#include "trainers/pcm_adversarial.h"

#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "trainers/adversarial_losses.h"

namespace fewstep {
namespace {

constexpr uint64_t kPcmHeadsSeed = 7001;  // apart from the seeds of other networks
constexpr int kFirstIterations = 8;
constexpr const char* kPcmHeadsFile = "discriminator";

models::FeatureDiscriminatorConfig pcm_heads(const PcmAdversarialConfig& config, const models::UNet2DConfig& unet) {
  models::FeatureDiscriminatorConfig out = config.heads;
  out.channels = {unet.block_out_channels.back()};
  out.validate("trainer.adversarial.heads");
  return out;
}

NamedTensors start_pcm_heads(models::FeatureDiscriminator& heads, const Distillation& distillation, const TrainContext& context) {
  heads.to(distillation.dtype());
  return start_network(heads, context, kPcmHeadsSeed);
}

void advance_pcm_heads(models::FeatureDiscriminator& heads) {
  const NoGrad no_grad;
  heads.visit([](const std::string&, nn::Module& module) {
    if (const auto* layer = dynamic_cast<const nn::SpectralLayer*>(&module)) layer->weight();
  });
}

}  // namespace

void describe(config::Visitor& v, PcmAdversarialConfig& c) {
  v.field("weight", c.weight, "of the student's part (published: 0.1); 0: no discriminator", config::kNonNegative);
  v.field("heads", c.heads, "spectral-norm heads on the teacher's middle block");
  v.field("optimizer", c.optimizer, "of the heads");
}

PcmAdversary::PcmAdversary(const PcmAdversarialConfig& config, const Distillation& distillation, const diffusion::SolverGrid& grid,
                           const TrainContext& context)
    : config_(config), distillation_(distillation), grid_(grid), context_(context),
      heads_(pcm_heads(config, distillation.model().unet->config())),
      set_("discriminator", start_pcm_heads(heads_, distillation, context), config.optimizer, context.world, context.horizon) {
  for (int i = 0; i < kFirstIterations; ++i) advance_pcm_heads(heads_);  // from random vectors the norm would be far too small
}

// Both sides of a sample at one level, each with noise of its own.
Tensor PcmAdversary::logits(const Tensor& x, Side side, const PhaseBatch& on) const {
  const at::Device device = distillation_.device();
  const Tensor u = uniform_by_id(on.ids, 1, on.at.seed, Stream::critic, on.at.step).select(1, 0);
  std::vector<int64_t> shape = x.sizes().slice(1).vec();
  shape.insert(shape.begin(), 2);
  const Tensor noise = normal_by_id(on.ids, shape, on.at.seed, Stream::discriminator, on.at.step).to(x.options()).select(1, static_cast<int64_t>(side));
  const auto moved = [&](const diffusion::NoiseLevels& l) {
    return diffusion::NoiseLevels{l.timestep.to(device), l.alpha.to(device), l.sigma.to(device)};
  };
  const diffusion::NoiseLevels end = moved(grid_.end(on.i)), level = moved(grid_.adversarial(on.i, u));
  const Tensor noised = diffusion::renoise(x, end, level, noise);
  const nn::EvalMode eval(heads_);  // the power iteration moves in step() only
  return heads_({distillation_.teacher_middle(noised, level.timestep, on.conditions)}, {}, on.ids);
}

Tensor PcmAdversary::student_loss(const Tensor& online, const PhaseBatch& on) const {
  const nn::Frozen frozen(heads_);
  return critic_real_loss(AdversarialLoss::hinge, logits(online, Side::student, on)) * config_.weight;
}

void PcmAdversary::critic_turn(const Tensor& online, const Tensor& target, const PhaseBatch& on, bool last, Metrics& metrics) {
  const Tensor fake = logits(online.detach(), Side::student, on), real = logits(target.detach(), Side::target, on);
  const Tensor loss = (critic_fake_loss(AdversarialLoss::hinge, fake) + critic_real_loss(AdversarialLoss::hinge, real)).sum();
  set_.backward(loss * (static_cast<double>(context_.world.size()) / static_cast<double>(context_.batch_size)), last);
  metrics.add("critic", loss, static_cast<double>(on.ids.size(0)));
  const CriticAccuracy of_fake = critic_accuracy(fake.detach(), false), of_real = critic_accuracy(real.detach(), true);
  metrics.add("critic_accuracy_student", of_fake.right, static_cast<double>(of_fake.samples));
  metrics.add("critic_accuracy_target", of_real.right, static_cast<double>(of_real.samples));
}

void PcmAdversary::step(int64_t step, Metrics& metrics) {
  metrics.add("critic_grad_norm", set_.step(step));
  advance_pcm_heads(heads_);  // once a step: their number depends on no split of the batch
}

void PcmAdversary::add_state(std::map<std::string, TensorMap>& files) const {
  set_.add_state(files);
  for (const auto& [name, tensor] : heads_.buffers()) files[kPcmHeadsFile].emplace(name, tensor.detach());
}

void PcmAdversary::load_state(const std::map<std::string, TensorMap>& files) {
  const NoGrad no_grad;
  set_.load_state(files);
  const auto file = files.find(kPcmHeadsFile);
  for (const auto& [name, tensor] : heads_.buffers()) {
    if (file == files.end() || !file->second.contains(name))
      fail<DataError>("the checkpoint has no '{}' in {}.safetensors, which the discriminator needs to resume", name, kPcmHeadsFile);
    tensor.copy_(file->second.at(name));
  }
}

}  // namespace fewstep
