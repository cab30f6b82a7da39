#include "trainers/dmd2.h"

#include <fmt/ranges.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "datasets/loader.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/io/checkpoint.h"
#include "src/io/safetensors.h"
#include "src/pipelines/draw_latents.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "trainers/dmd2_draws.h"
#include "trainers/micro_batches.h"
#include "trainers/trainable_set.h"

namespace fewstep {
namespace fs = std::filesystem;
namespace {

constexpr const char* kFakeScore = "fake_score";
constexpr const char* kMonitorFile = "dmd2";
constexpr int64_t kValidationStep = -1, kDiversityStep = -2;  // of the random streams: no iteration of a training

// One micro-batch of an iteration: what the student made of its noise, and what it was told.
struct Generated {
  Batch batch;
  models::UNetConditions conditions;
  int64_t first = 0;    // place in this rank's share
  DrawKey key;
  Tensor x0;            // [B, C, h, w], float32 at least; with the student's graph in its turn only
  Tensor images = {};   // of x0, where the GAN has decoded them
};

class Dmd2Trainer : public Trainer {
 public:
  Dmd2Trainer(const Dmd2Config& config, const TrainContext& context)
      : config_(config), context_(context), distillation_(config.distillation, context), fake_(distillation_.add(kFakeScore)),
        student_set_("student", student().parameters(), config.optimizer, context.world, context.horizon),
        fake_set_(kFakeScore, fake_->parameters(), config.critic.optimizer, context.world, context.horizon),
        monitors_(config.monitor), gap_names_(score_gap_names(config.monitor.bins)) {
    if (config_.gan.on())
      gan_ = std::make_unique<FeatureGan>(config_.gan, distillation_.model(), schedule(), distillation_.teacher_folder(), context);
    if (!config_.critic.start.empty() && context.resume.empty()) start_fake_score(config_.critic.start);
    const TurnConfig& turns = config_.critic.turns;
    log::info("dmd2: rungs {:g}, guidance {:g}; {} parameters of the student, {} of the fake score; in {} iterations {} of its updates for "
              "one of the student; {}", fmt::join(schedule().timesteps(), ", "), config_.cfg_scale, count_elements(student_set_.parameters()),
              count_elements(fake_set_.parameters()), turns.updates, critic_turns(turns), gan_ ? "with a GAN" : "no GAN");
  }

  // Losses are sums over this rank's samples / samples of the global batch, times ranks.
  Metrics step(const Batch& batch, const StepContext& at) override {
    Metrics metrics;
    measure_diversity(at, metrics);
    const Turns turns = turns_at(config_.critic.turns, at.step);
    const int64_t rung = draw_rung(schedule(), at.seed, at.step);
    std::vector<Generated> made;
    for_micro_batches(batch, context_.accumulate, [&](const Batch& micro, bool last) {
      made.push_back(generate(micro, {micro.ids.to(at::kCPU), at.seed, at.step}, rung, turns.student));
      Generated& g = made.back();
      g.first = static_cast<int64_t>(made.size() - 1) * micro.size();
      if (turns.student) student_turn(g, rung, at, last, metrics);
      g.x0 = g.x0.detach();
    });
    metrics.add("rung", static_cast<double>(rung));
    if (turns.student) move_student(at, metrics);
    if (turns.critic) critic_turn(made, rung, at, metrics);
    look(at, metrics);
    return metrics;
  }

  // What tells two checkpoints apart, on fixed noise: the student's whole course, then |xf - xr| and the losses of both scores on it.
  Metrics validate(const Batch& batch) override {
    const TrainableSet::EmaScope ema(student_set_);
    const NoGrad no_grad;
    const DrawKey key{.ids = batch.ids.to(at::kCPU), .seed = context_.seed, .step = kValidationStep};
    const Generated g = generate(batch, key, schedule().steps() - 1, false);
    const auto count = static_cast<double>(batch.size());
    Metrics metrics;
    record_gap(scores(g), metrics);
    const CriticLosses losses = critic_losses(g, true);
    metrics.add("critic_loss", losses.fake.sum(), count);
    metrics.add("teacher_loss", losses.teacher.sum(), count);
    return metrics;
  }

  Tensor sample_grid(uint64_t seed) override {
    const TrainableSet::EmaScope ema(student_set_);
    return distillation_.sample_grid(seed);
  }

  void save_model(const fs::path& folder) const override {
    const TrainableSet::EmaScope ema(student_set_);
    distillation_.save(folder, "dmd2", training_facts());
  }

  std::map<std::string, TensorMap> state() const override {
    std::map<std::string, TensorMap> files;
    student_set_.add_state(files);
    fake_set_.add_state(files);
    if (gan_) gan_->add_state(files);
    files[kMonitorFile] = monitors_.state();
    distillation_.add_state(files);
    return files;
  }

  void load_state(const std::map<std::string, TensorMap>& files) override {
    distillation_.check_state(files);
    student_set_.load_state(files);
    fake_set_.load_state(files);
    if (gan_) gan_->load_state(files);
    const auto own = files.find(kMonitorFile);
    if (own == files.end()) fail<DataError>("the checkpoint has no {}.safetensors, which the trainer 'dmd2' needs to resume", kMonitorFile);
    monitors_.load_state(own->second);
  }

  // Of one iteration, the mean over a cycle of turns; without monitors. In forward passes of the network: gradients cost 2 (of an
  // adapter's few weights, 1), made again with recompute 1.
  double flops_per_sample() const override {
    const TurnConfig& turns = config_.critic.turns;
    const DistillationConfig& d = config_.distillation;
    const double trained = (d.lora.on() ? 2.0 : 3.0) + (d.recompute ? 1.0 : 0.0);
    const double rollout = 0.5 * static_cast<double>(schedule().steps() - 1), real = guided() ? 2.0 : 1.0;
    const auto r = static_cast<double>(turns.updates), critic = static_cast<double>(critic_turns(turns));
    const double cycle = (rollout + trained + 1.0 + real) + (r - 1.0) * (rollout + 1.0) + critic * trained;
    const double features = 2.0 + 2.0 * critic;  // there and back for the student; of real and made images for the heads
    return (cycle * distillation_.forward_flops() + (gan_ ? features * gan_->feature_flops() : 0.0)) / r;
  }

 private:
  // x0 as the fake score and the guided teacher have it, [B, C, h, w].
  struct Scores {
    Tensor fake, real, t;
  };
  struct CriticLosses {
    Tensor fake, teacher;  // [B]; teacher undefined unless asked for
  };

  const diffusion::StudentSchedule& schedule() const { return distillation_.schedule(); }
  diffusion::Prediction prediction() const { return distillation_.model().prediction; }
  const DistilledNetwork& student() const { return distillation_.student(); }
  bool guided() const { return config_.cfg_scale != 1.0; }
  double share() const { return static_cast<double>(context_.world.size()) / static_cast<double>(context_.batch_size); }
  GanBatch gan_batch(const Generated& g, int64_t rung, const StepContext& at) const {
    return {.batch = g.batch, .conditions = g.conditions, .first = g.first, .rung = rung, .at = at};
  }

  // The student's x0 at `rung`, where its own steps led it from noise; `with_graph`: the last pass only.
  Generated generate(const Batch& batch, const DrawKey& key, int64_t rung, bool with_graph) const {
    Generated g{.batch = batch, .conditions = distillation_.conditions(batch), .key = key, .x0 = {}};
    const auto options = at::TensorOptions(distillation_.device()).dtype(distillation_.dtype());
    const Tensor noise = draw_rollout(key, distillation_.latent_shape(batch), rung + 1, options);  // [B, 1 + rung, C, h, w]
    const diffusion::Network network = network_of(g.conditions);
    const Tensor x_in = diffusion::simulate_student(network, prediction(), schedule(), noise.select(1, 0),
                                                    [&](int64_t j) { return noise.select(1, 1 + j); }, rung);
    std::optional<NoGrad> no_grad;
    if (!with_graph) no_grad.emplace();
    const Tensor level = at::ones({batch.size()}, x_in.options().dtype(at::kDouble));
    g.x0 = diffusion::predicted_x0(prediction(), network(x_in, schedule().timestep(rung)), x_in, level * schedule().alpha(rung),
                                   level * schedule().sigma(rung));
    return g;
  }

  diffusion::Network network_of(const models::UNetConditions& conditions) const {
    return [this, &conditions](const Tensor& x, double t) {
      return student()(x, at::full({1}, t, at::TensorOptions(at::kFloat).device(x.device())), conditions);
    };
  }

  Scores scores(const Generated& g) const {
    const NoGrad no_grad;
    const NoisedX0 n = draw_noised(g.key, Stream::score, config_.score, schedule().schedule(), g.x0.detach());
    const Tensor fake = (*fake_)(n.x_t, n.t, g.conditions);
    const auto [conditional, unconditional] = teacher_outputs(n, g);
    return {.fake = diffusion::predicted_x0(prediction(), fake, n.x_t, n.alpha, n.sigma),
            .real = diffusion::guided_x0(prediction(), conditional, unconditional, config_.cfg_scale, n.x_t, n.alpha, n.sigma), .t = n.t};
  }

  // With guidance both in one pass of 2 B rows.
  std::pair<Tensor, Tensor> teacher_outputs(const NoisedX0& n, const Generated& g) const {
    if (!guided()) return {distillation_.teacher(n.x_t, n.t, g.conditions), Tensor()};
    const auto both = pipelines::concatenate(g.conditions, distillation_.null_conditions(g.batch));
    const Tensor out = distillation_.teacher(at::cat({n.x_t, n.x_t}), at::cat({n.t, n.t}), both);
    const int64_t B = n.t.size(0);
    return {out.narrow(0, 0, B), out.narrow(0, B, B)};
  }

  // Adds the student's gradients of one micro-batch: of DMD and, from gan.start_step on, of the GAN, both put in at x0.
  void student_turn(Generated& g, int64_t rung, const StepContext& at, bool last, Metrics& metrics) {
    const auto count = static_cast<double>(g.batch.size());
    const Scores s = scores(g);
    const Tensor gradient = diffusion::reverse_kl_gradient(g.x0, s.fake, s.real);
    const Tensor dmd = diffusion::pseudo_loss(g.x0, gradient).sum();
    Tensor loss = dmd * share();
    metrics.add("dmd_loss", dmd, count);
    record_gap(s, metrics);
    if (gan_ && gan_->generator_active(at.step)) {
      const PixelGradient of_gan = gan_->generator_turn(g.x0, gan_batch(g, rung, at), metrics);
      loss = loss + injected_gradient(g.x0, of_gan.gradient);
      g.images = of_gan.images;
      // Norms a sample, of its own losses.
      const double elements = static_cast<double>(g.x0.numel()) / count;
      metrics.add("gradient_dmd", gradient.flatten(1).norm(2, {1}).sum() / elements, count);
      metrics.add("gradient_gan", of_gan.gradient.flatten(1).norm(2, {1}).sum() / share(), count);
    }
    student_set_.backward(loss, last);
  }

  void move_student(const StepContext& at, Metrics& metrics) {
    metrics.add("grad_norm", student_set_.step(at.step));
    metrics.add("lr", student_set_.learning_rate(at.step));
    if (config_.align >= 1.0) return;
    diffusion::align_fake_score(tensors_of(fake_set_.parameters()), tensors_of(student_set_.parameters()), config_.align);
  }

  // One update of the fake score, and of the discriminator, on what the student made in this iteration.
  void critic_turn(const std::vector<Generated>& made, int64_t rung, const StepContext& at, Metrics& metrics) {
    const bool adversarial = gan_ && gan_->critic_active(at.step), compare = looks_at_critic(at.step);
    for (size_t i = 0; i < made.size(); ++i) {
      const Generated& g = made[i];
      const bool last = i + 1 == made.size();
      const auto count = static_cast<double>(g.batch.size());
      const CriticLosses losses = critic_losses(g, compare);
      fake_set_.backward(losses.fake.sum() * share(), last);
      metrics.add("critic_loss", losses.fake.sum(), count);
      if (compare) metrics.add("teacher_loss", losses.teacher.sum(), count);
      if (adversarial) gan_->critic_turn(g.x0, g.images, gan_batch(g, rung, at), last, metrics);
    }
    metrics.add("critic_grad_norm", fake_set_.step(at.step));
    metrics.add("critic_lr", fake_set_.learning_rate(at.step));
    if (adversarial) gan_->step(at, metrics);
  }

  CriticLosses critic_losses(const Generated& g, bool compare) const {
    const NoisedX0 n = draw_noised(g.key, Stream::critic, config_.critic.timesteps, schedule().schedule(), g.x0);
    const auto loss = [&](const Tensor& output) {
      return diffusion::fake_score_loss(prediction(), output, g.x0, n.noise, n.alpha, n.sigma);
    };
    return {.fake = loss((*fake_)(n.x_t, n.t, g.conditions)),
            .teacher = compare ? loss(distillation_.teacher(n.x_t, n.t, g.conditions)) : Tensor()};
  }

  void record_gap(const Scores& s, Metrics& metrics) const {
    const diffusion::ScoreGap gap = diffusion::score_gap(s.fake, s.real, s.t, schedule().schedule(), config_.monitor.bins);
    const Tensor counts = gap.count.to(at::kCPU).contiguous();
    metrics.add("score_gap", gap.sum.sum(), counts.sum().item<double>());
    for (size_t i = 0; i < gap_names_.size(); ++i)
      metrics.add(gap_names_[i], gap.sum[static_cast<int64_t>(i)], counts.const_data_ptr<double>()[i]);
  }

  bool looks(int64_t step, int64_t place) const {
    const CyclePlace here = cycle_place(config_.critic.turns, step);
    return here.place == place && here.cycle % config_.monitor.every == 0;
  }
  bool looks_at_student(int64_t step) const { return looks(step, 0); }
  bool looks_at_critic(int64_t step) const { return looks(step, config_.critic.turns.updates - 1); }
  bool looks_at_diversity(int64_t step) const { return config_.monitor.diversity_every > 0 && step % config_.monitor.diversity_every == 0; }

  void look(const StepContext& at, Metrics& metrics) {
    if (!looks_at_student(at.step) && !looks_at_critic(at.step) && !looks_at_diversity(at.step)) return;
    Metrics copy = metrics;
    for (const auto& [name, value] : monitors_.look(copy.reduce(context_.world), at.step)) metrics.add(name, value);
  }

  // The student's whole course from the same noise for the same prompts each time. Ranks share the prompts out, with an equal number
  // of passes each.
  void measure_diversity(const StepContext& at, Metrics& metrics) const {
    if (!looks_at_diversity(at.step)) return;
    const Dataset& data = context_.validation && context_.validation->size() > 0 ? *context_.validation : context_.train;
    const int64_t M = config_.monitor.samples, P = std::min(config_.monitor.prompts, data.size()), ranks = context_.world.size();
    for (int64_t p = context_.world.rank(); p < (P + ranks - 1) / ranks * ranks; p += ranks) {
      const int64_t prompt = p % P;
      const Batch batch = load_indices(data, std::vector<int64_t>(static_cast<size_t>(M), prompt), context_.seed).to(distillation_.device());
      const DrawKey key{.ids = at::arange(M) + prompt * M, .seed = context_.seed, .step = kDiversityStep};
      const Tensor x0 = generate(batch, key, schedule().steps() - 1, false).x0;
      metrics.add("sample_distance", p < P ? distance_within(x0, M).sum() : at::zeros({}, x0.options()), p < P ? 1.0 : 0.0);
    }
  }

  // From the latest checkpoint of a dmd2 run whose networks were trained in the same way (copies, or adapters of this rank).
  void start_fake_score(const fs::path& run) {
    const auto checkpoint = io::find_checkpoint(run);
    if (!checkpoint) fail<DataError>("trainer.critic.start: {} holds no checkpoint of a dmd2 training", run.string());
    const fs::path file = *checkpoint / "weights.safetensors";
    const TensorMap saved = io::Safetensors(file).all();
    const NoGrad no_grad;
    for (const auto& [name, tensor] : fake_set_.parameters()) {
      const auto found = saved.find(std::string(kFakeScore) + "." + name);
      if (found == saved.end() || found->second.sizes() != tensor.sizes())
        fail<DataError>("trainer.critic.start: {} has no '{}.{}' of this shape: is it a dmd2 run with the same lora settings?", file.string(),
                        kFakeScore, name);
      Tensor(tensor).copy_(found->second);
    }
  }

  Json training_facts() const {
    return {{"guidance", config_.cfg_scale},
            {"batch_size", context_.batch_size},
            {"iterations", context_.total_steps},
            {"student_every", config_.critic.turns.updates},
            {"critic_updates_per_student_update", critic_turns(config_.critic.turns)},
            {"lr", config_.optimizer.lr},
            {"critic_lr", config_.critic.optimizer.lr},
            {"score_min", config_.score.min},
            {"score_max", config_.score.max},
            {"align", config_.align},
            {"gan", gan_ ? Json(gan_->description()) : Json()},
            {"start", config_.distillation.start}};
  }

  static std::vector<Tensor> tensors_of(const NamedTensors& named) {
    std::vector<Tensor> out;
    for (const auto& [name, tensor] : named) out.push_back(tensor);
    return out;
  }

  const Dmd2Config config_;
  const TrainContext context_;
  Distillation distillation_;
  std::unique_ptr<DistilledNetwork> fake_;
  mutable TrainableSet student_set_;
  TrainableSet fake_set_;
  std::unique_ptr<FeatureGan> gan_;  // null: none
  Dmd2Monitors monitors_;
  const std::vector<std::string> gap_names_;
};

}  // namespace

void describe(config::Visitor& v, Dmd2CriticConfig& c) {
  describe_turns(v, c.turns);
  v.field("start", c.start, "run folder of a dmd2 training whose fake score goes on; empty: it starts as the teacher");
  v.field("timesteps", c.timesteps, "noise levels it is trained on, of the whole axis as published");
  v.field("optimizer", c.optimizer, "AdamW, its schedule, clipping, of the fake score");
  v.check(c.optimizer.ema_decay == 0, "optimizer", "ema_decay must be 0: a moving average would lag behind the student even more");
}

void Dmd2Config::describe(config::Visitor& v) {
  describe_distillation(v, distillation);
  v.field("cfg_scale", cfg_scale, "guidance of the teacher: unconditional + cfg_scale (conditional - unconditional); 1: none", config::kNonNegative);
  v.field("score", score, "noise levels at which student and teacher are compared");
  v.field("align", align, "implicit distribution alignment: share of itself that the fake score keeps after each of the student's steps, the "
          "rest becomes the student's (0.97 where updates is 5, 0.98 where it is 10); 1: off", config::kUnit);
  v.field("optimizer", optimizer, "AdamW, its schedule, clipping and moving average, of the student");
  v.field("critic", critic, "the fake score, and whose turn it is");
  v.field("gan", gan, "discriminator on features of decoded images; without gan.features: none");
  v.field("monitor", monitor, "limits that warn while the training runs");
}

bool Dmd2Config::fixed(std::string_view key) const {
  return of_distillation(key) || key == "critic.start" || key.starts_with("gan.features") || key.starts_with("gan.heads");
}

std::unique_ptr<Trainer> Dmd2Config::build(const TrainContext& context) const { return std::make_unique<Dmd2Trainer>(*this, context); }

std::unique_ptr<TrainerConfig> make_dmd2() { return std::make_unique<Dmd2Config>(); }

}  // namespace fewstep
