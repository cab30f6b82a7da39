#include "trainers/pcm.h"

#include <map>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/log.h"
#include "src/pipelines/draw_latents.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "trainers/micro_batches.h"
#include "trainers/trainable_set.h"

namespace fewstep {
namespace fs = std::filesystem;
namespace {

// Draws of a validation sample, one each in Stream::eval.
enum PcmValidationDraw : int64_t { kDrawnNoise, kDrawnTrajectory, kTrajectoryNoise };

class PcmTrainer : public Trainer {
 public:
  PcmTrainer(const PcmConfig& config, const TrainContext& context)
      : config_(config), context_(context), distillation_(config.distillation, context), student_(distillation_.student()),
        prediction_(distillation_.model().prediction), grid_(distillation_.schedule(), config.consistency.solver_steps),
        set_("student", student_.parameters(), config.optimizer, context.world, context.horizon) {
    log::info("pcm: {} phases on a grid of {} steps, guidance of the teacher {} to {}", grid_.phases(), grid_.steps(), config.consistency.cfg_min,
              config.consistency.cfg_max);
    if (config.adversarial.on()) adversary_ = std::make_unique<PcmAdversary>(config.adversarial, distillation_, grid_, context);
  }

  // Sum over this rank's samples / samples of the global batch, times ranks: the average over ranks is the global mean.
  Metrics step(const Batch& batch, const StepContext& at) override {
    Metrics metrics;
    for_micro_batches(batch, context_.accumulate, [&](const Batch& micro, bool last) {
      const Tensor ids = micro.ids.to(at::kCPU);
      const Tensor u = uniform_by_id(ids, 2, at.seed, Stream::timestep, at.step);  // the point, the guidance
      const Tensor x0 = distillation_.latents(micro, {.ids = ids, .seed = at.seed, .step = at.step});
      const Tensor noise = normal_by_id(ids, x0.sizes().slice(1), at.seed, Stream::noise, at.step).to(x0.options());
      const Tensor i = grid_.draw(u.select(1, 0));
      const models::UNetConditions c = distillation_.conditions(micro);
      const Jumps jumps = both_jumps({micro, c}, x0, noise, i, guidance(u.select(1, 1)));
      Tensor loss = diffusion::consistency_loss(config_.consistency, jumps.online, jumps.target).sum();
      metrics.add("loss", loss, static_cast<double>(micro.size()));
      const PhaseBatch phase{.ids = ids, .i = i, .conditions = c, .at = at};
      if (adversary_) {
        const Tensor deceived = adversary_->student_loss(jumps.online, phase).sum();
        metrics.add("adversarial", deceived, static_cast<double>(micro.size()));
        loss = loss + deceived;
      }
      set_.backward(loss * (static_cast<double>(context_.world.size()) / static_cast<double>(context_.batch_size)), last);
      if (adversary_) adversary_->critic_turn(jumps.online, jumps.target, phase, last, metrics);
    });
    metrics.add("grad_norm", set_.step(at.step));
    if (adversary_) adversary_->step(at.step, metrics);
    metrics.add("lr", set_.learning_rate(at.step));
    steps_done_ = at.step + 1;
    return metrics;
  }

  // The loss at a point, noise and middle guidance that each sample has for good, apart for the phases; and for a share of the samples the
  // squared distance of the student's sample from the teacher's, from one noise.
  Metrics validate(const Batch& batch) override {
    const TrainableSet::EmaScope ema(set_);
    const Tensor ids = batch.ids.to(at::kCPU);
    const Tensor i = ids.remainder(grid_.steps());
    const Tensor x0 = distillation_.latents(batch, {});
    const Tensor noise = normal_by_id(ids, x0.sizes().slice(1), context_.seed, Stream::eval, kDrawnNoise).to(x0.options());
    const models::UNetConditions c = distillation_.conditions(batch);
    const Jumps jumps = both_jumps({batch, c}, x0, noise, i, guidance(at::full({batch.size()}, 0.5)));
    const Tensor loss = diffusion::consistency_loss(config_.consistency, jumps.online, jumps.target).to(at::kCPU);
    Metrics metrics;
    metrics.add("loss", loss.sum(), static_cast<double>(batch.size()));
    for (size_t p = 0; p < grid_.edges().size(); ++p) {
      const int64_t from = grid_.edges()[p], to = p + 1 < grid_.edges().size() ? grid_.edges()[p + 1] : grid_.steps();
      const Tensor here = i.ge(from).logical_and(i.lt(to));
      metrics.add(fmt::format("loss[t<={:g}]", grid_.timesteps()[static_cast<size_t>(to - 1)]), loss.masked_select(here).sum(),
                  static_cast<double>(here.sum().item<int64_t>()));
    }
    if (config_.validation_trajectories > 0) compare_trajectories(batch, ids, metrics);
    return metrics;
  }

  Tensor sample_grid(uint64_t seed) override {
    const TrainableSet::EmaScope ema(set_);
    return distillation_.sample_grid(seed);
  }

  void save_model(const fs::path& folder) const override {
    const TrainableSet::EmaScope ema(set_);
    const diffusion::ConsistencyConfig& c = config_.consistency;
    distillation_.save(folder, "pcm", {{"iterations", steps_done_}, {"batch_size", context_.batch_size}, {"lr", config_.optimizer.lr},
                                       {"ema_decay", config_.optimizer.ema_decay}, {"solver_steps", grid_.steps()}, {"phases", grid_.phases()},
                                       {"teacher_cfg_min", c.cfg_min}, {"teacher_cfg_max", c.cfg_max},
                                       {"distance", c.distance == diffusion::ConsistencyDistance::huber ? "huber" : "l2"},
                                       {"adversarial_weight", config_.adversarial.weight}});
  }

  std::map<std::string, TensorMap> state() const override {
    std::map<std::string, TensorMap> files;
    set_.add_state(files);
    distillation_.add_state(files);
    if (adversary_) adversary_->add_state(files);
    return files;
  }
  void load_state(const std::map<std::string, TensorMap>& files) override {
    distillation_.check_state(files);
    set_.load_state(files);
    if (adversary_) adversary_->load_state(files);
  }

  // Student: forward 1, gradient of inputs 1, gradient of weights 1 (adapters have few), with recompute the forward again, and the
  // target's forward; teacher: 1, with guidance 2; features for the discriminator: forward and back for the student, 2 forward for it.
  double flops_per_sample() const override {
    const int passes = (config_.distillation.lora.on() ? 2 : 3) + (config_.distillation.recompute ? 1 : 0) + 1 + (guided() ? 2 : 1) +
                       (adversary_ ? 4 : 0);
    return passes * distillation_.forward_flops();
  }

 private:
  struct Told {
    const Batch& batch;
    const models::UNetConditions& conditions;  // of it
  };
  struct Jumps {
    Tensor online, target;  // [B, C, h, w], at the ends of their phases
  };
  // The box of consistency.h. i: int64 [B], points of the grid; w: [B], guidance of the teacher.
  Jumps both_jumps(const Told& told, const Tensor& x0, const Tensor& noise, const Tensor& i, const Tensor& w) const {
    const diffusion::NoiseLevels at = to_device(grid_.at(i)), before = to_device(grid_.before(i)), end = to_device(grid_.end(i));
    const Tensor x = diffusion::add_noise(distillation_.schedule().schedule(), x0, noise, at.timestep);

    const Tensor online = diffusion::jump(prediction_, student_(x, at.timestep, told.conditions), x, at, end);
    const Tensor x_prev = teacher_step(told, w, x, at, before);
    const Tensor jumped = jump_without_gradient(x_prev, told.conditions, before, end);
    return {online, diffusion::consistency_target(jumped, x_prev, grid_.is_edge(i).to(x.device()))};
  }

  Tensor jump_without_gradient(const Tensor& x, const models::UNetConditions& c, const diffusion::NoiseLevels& from,
                               const diffusion::NoiseLevels& to) const {
    const NoGrad no_grad;
    return diffusion::jump(prediction_, student_(x, from.timestep, c), x, from, to);
  }

  Tensor teacher_step(const Told& told, const Tensor& w, const Tensor& x, const diffusion::NoiseLevels& from, const diffusion::NoiseLevels& to) const {
    const Tensor conditional = distillation_.teacher(x, from.timestep, told.conditions);
    const Tensor unconditional = guided() ? distillation_.teacher(x, from.timestep, distillation_.null_conditions(told.batch)) : Tensor();
    return diffusion::teacher_step(prediction_, conditional, unconditional, w, x, from, to);
  }

  bool guided() const { return config_.consistency.cfg_min != 1.0 || config_.consistency.cfg_max != 1.0; }
  Tensor guidance(const Tensor& uniform) const {  // uniform: [B] in [0, 1)
    const diffusion::ConsistencyConfig& c = config_.consistency;
    return uniform.to(at::kDouble) * (c.cfg_max - c.cfg_min) + c.cfg_min;
  }
  diffusion::NoiseLevels to_device(const diffusion::NoiseLevels& levels) const {
    const at::Device device = distillation_.device();
    return {levels.timestep.to(device), levels.alpha.to(device), levels.sigma.to(device)};
  }

  void compare_trajectories(const Batch& batch, const Tensor& ids, Metrics& metrics) {
    const Tensor u = uniform_by_id(ids, 1, context_.seed, Stream::eval, kDrawnTrajectory).select(1, 0);
    double sum = 0, count = 0;
    for (int64_t row = 0; row < ids.size(0); ++row) {
      if (u[row].item<double>() >= config_.validation_trajectories) continue;
      const Batch one = batch.slice(row, row + 1);
      const Tensor x_T = normal_by_id(ids.narrow(0, row, 1), distillation_.latent_shape(one), context_.seed, Stream::eval, kTrajectoryNoise)
                             .to(distillation_.device(), distillation_.dtype());
      Tensor& theirs = teachers_samples_[ids[row].item<int64_t>()];
      if (!theirs.defined()) theirs = teachers_sample(one, x_T);
      const Tensor ours = distillation_.student_x0(distillation_.conditions(one), x_T, {}).back();
      sum += (ours - theirs).square().mean().item<double>(), count += 1;
    }
    metrics.add("x0_error", sum, count);
  }

  // The solver's whole way from noise, at the middle guidance: what the phases add up to.
  Tensor teachers_sample(const Batch& batch, const Tensor& x_T) const {
    const models::UNetConditions c = distillation_.conditions(batch);
    const Tensor w = guidance(at::full({batch.size()}, 0.5));
    Tensor x = x_T * diffusion::initial_scale(distillation_.schedule().plan());
    for (int64_t n = grid_.steps() - 1; n >= 0; --n) {
      const Tensor i = at::full({batch.size()}, n, at::kLong);
      x = teacher_step({batch, c}, w, x, to_device(grid_.at(i)), to_device(grid_.before(i)));
    }
    return x;
  }

  const PcmConfig config_;
  const TrainContext context_;
  const Distillation distillation_;
  const DistilledNetwork& student_;
  const diffusion::Prediction prediction_;
  const diffusion::SolverGrid grid_;
  mutable TrainableSet set_;
  std::unique_ptr<PcmAdversary> adversary_;  // null without
  std::map<int64_t, Tensor> teachers_samples_;  // by id: the teacher does not change
  int64_t steps_done_ = 0;
};

}  // namespace

void PcmConfig::describe(config::Visitor& v) {
  describe_distillation(v, distillation);
  v.check(distillation.student.student == diffusion::StudentKind::ode, "student.student",
          "must be ode: a phased consistency student goes on with the noise it predicts");
  v.field("consistency", consistency, "the teacher's grid and guidance, the distance");
  v.field("optimizer", optimizer, "AdamW, its schedule, moving average");
  v.field("adversarial", adversarial, "a discriminator on the teacher's features; without weight none");
  v.field("validation_trajectories", validation_trajectories,
          "share of the validation samples that the teacher draws as well, once: x0_error is the student's squared distance", config::kUnit);
}

std::unique_ptr<Trainer> PcmConfig::build(const TrainContext& context) const { return std::make_unique<PcmTrainer>(*this, context); }

std::unique_ptr<TrainerConfig> make_pcm() { return std::make_unique<PcmConfig>(); }

}  // namespace fewstep
