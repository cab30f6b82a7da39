#include "trainers/loop.h"

#include <ATen/Parallel.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <chrono>
#include <thread>

#include "datasets/loader.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/base/memory.h"
#include "src/base/progress.h"
#include "src/base/signals.h"
#include "src/base/text.h"
#include "src/config/config.h"
#include "src/io/checkpoint.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "trainers/run_folder.h"

namespace fewstep {
namespace fs = std::filesystem;
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

std::string id_text(const Batch& batch) {
  const Tensor ids = batch.ids.to(at::kCPU).contiguous();
  return fmt::format("{}", fmt::join(ids.const_data_ptr<int64_t>(), ids.const_data_ptr<int64_t>() + ids.numel(), ", "));
}

double percentile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  const size_t k = std::min(values.size() - 1, static_cast<size_t>(q * static_cast<double>(values.size())));
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(k), values.end());
  return values[k];
}

void check_batch(const LoopConfig& c, int ranks, const std::string& stage) {
  const int64_t parts = c.accumulate * ranks;
  if (c.batch_size % parts != 0)
    fail<ConfigError>("{}loop.batch_size {} is not divisible by {} ranks x {} accumulated micro-steps; the nearest that are: {} and {}",
                      stage.empty() ? "" : "stage '" + stage + "': ", c.batch_size, ranks, c.accumulate,
                      std::max<int64_t>(c.batch_size / parts, 1) * parts, (c.batch_size / parts + 1) * parts);
}

// One run in progress. The step itself is the trainer's; everything around it is here.
class Loop {
 public:
  Loop(RunConfig& config, dist::World& world, bool resume)
      : config_(config), world_(world), resolved_(config::to_yaml(config)), stages_(plan_stages(config)), total_(stages_.back().end) {
    for (const Stage& stage : stages_) check_batch(stage.config->loop, world.size(), stage.name);
    open_folder(resume);
    if (const auto found = resume ? io::find_checkpoint(config_.folder()) : std::nullopt) {
      resume_from(*found);
      log::info("{}: resumed from {} (step {} of {})", config_.name, found->filename().string(), state_.step, total_);
      return;
    }
    if (resume) log::info("{}: nothing to resume in {}, starting from the beginning", config_.name, config_.folder().string());
    enter(0, {});
  }

  LoopResult run() {
    if (world_.is_main()) progress_ = std::make_unique<Progress>(config_.name, total_, state_.step);
    while (state_.step < total_) {
      if (state_.step == stage_->end) {
        const fs::path checkpoint = io::checkpoint_path(config_.folder(), state_.step);
        enter(stage_of(stages_, state_.step), checkpoint / "model");
        go_on(checkpoint, stage_->carry);
      }
      run_stage();
    }
    if (progress_) progress_->finish();
    world_.barrier();
    return {.steps = state_.step, .seconds = state_.seconds, .last_train = last_train_, .last_validation = last_validation_};
  }

 private:
  // Data and trainer with the settings of stage `index`. `model`: that of the checkpoint to be loaded next, if any.
  void enter(size_t index, const fs::path& model) {
    trainer_.reset();  // before the data it refers to
    stage_ = &stages_[index];
    const RunConfig& c = *stage_->config;
    train_data_ = c.data->build(Split::train);
    if (train_data_->size() == 0) fail<DataError>("data: the train split of {} is empty", train_data_->description());
    validation_data_ = c.loop.validation_samples > 0 ? c.data->build(Split::heldout) : nullptr;
    log::info("{}: {}{}", config_.name, stage_->name.empty() ? "" : fmt::format("stage '{}' ({} steps): ", stage_->name, stage_->end - stage_->first),
              train_data_->description());
    const bool anew = config_.schedule_over == ScheduleSpan::stage;
    trainer_ = c.trainer->build({.world = world_, .seed = static_cast<uint64_t>(config_.seed), .total_steps = total_,
                                 .horizon = anew ? Horizon(stage_->first, stage_->end - stage_->first) : Horizon(total_),
                                 .batch_size = c.loop.batch_size, .accumulate = c.loop.accumulate,
                                 .train = *train_data_, .validation = validation_data_.get(), .resume = model});
  }

  void resume_from(const fs::path& checkpoint) {
    const CheckpointState saved = checkpoint_state(checkpoint);
    const auto before = static_cast<size_t>(saved.stage), now = stage_of(stages_, saved.step);
    const bool boundary = before + 1 == now && saved.step == stages_[now].first;  // written at the end of the stage before
    if (before != now && !boundary)
      fail<ConfigError>("cannot resume from {}: step {} was in stage {} of the run, and is in stage {} ('{}') of `stages` as they are "
                        "now: give stage {} at least {} steps", checkpoint.string(), saved.step, before + 1, now + 1, stages_[now].name,
                        before + 1, before < stages_.size() ? saved.step - stages_[before].first : 0);
    enter(now, checkpoint / "model");
    go_on(checkpoint, boundary ? stage_->carry : CarryConfig());
  }

  void go_on(const fs::path& checkpoint, const CarryConfig& carry) {
    state_ = read_checkpoint(checkpoint, *trainer_, resolved_, world_.size(), carry);
    state_.stage = stage_ - stages_.data();
  }

  // To the stage's end, or to a signal.
  void run_stage() {
    const LoopConfig& c = loop();
    Loader loader(*train_data_, {.batch_size = c.batch_size, .rank = world_.rank(), .world_size = world_.size(),
                                 .seed = static_cast<uint64_t>(config_.seed), .first_step = stage_->loader_step(state_.step),
                                 .workers = c.workers, .prefetch = c.prefetch});
    waited_before_ = 0;
    interval_start_ = Clock::now();
    while (state_.step < stage_->end) {
      const Batch batch = loader.next().to(world_.device());
      state_.epoch = loader.epoch_of(stage_->loader_step(state_.step));
      train_step(batch);
      const bool last = state_.step == stage_->end;
      if (state_.step % c.log_every == 0 || last) log_interval(loader);
      if (last || due(c.validate_every)) validate();
      if (last || due(c.sample_every)) save_samples();
      const bool stop = stop_agreed();
      if (last || due(c.checkpoint_every) || stop) save();
      if (stop && state_.step < total_)
        throw Interrupted(fmt::format("stopped at step {} of {}; continue with --resume", state_.step, total_));
    }
    world_.barrier();  // every rank reads the checkpoint at a boundary
  }

  const LoopConfig& loop() const { return stage_->config->loop; }
  bool due(int64_t every) const { return every > 0 && state_.step % every == 0; }

  void open_folder(bool resume) {
    const fs::path folder = config_.folder();
    if (!world_.is_main()) return;
    folder_ = std::make_unique<RunFolder>(folder, resolved_);
    if (resume) return;
    if (const auto found = io::find_checkpoint(folder))
      fail<ConfigError>("{} already holds a run ({}): continue it with --resume, or choose another name or --run-dir",
                        folder.string(), found->filename().string());
  }

  void train_step(const Batch& batch) {
    const Clock::time_point begin = Clock::now();
    log::debug("step {} rank {}: epoch {} ids [{}]", state_.step, world_.rank(), state_.epoch, id_text(batch));
    try {
      metrics_.merge(trainer_->step(batch, {.step = state_.step, .epoch = state_.epoch, .seed = static_cast<uint64_t>(config_.seed)}));
    } catch (const NumericError& e) {
      stop_on_nonfinite(batch, e);
    }
    step_seconds_.push_back(seconds_since(begin));
    state_.step += 1;
    state_.images += loop().batch_size;
  }

  // The weights are as before the step: they are kept for inspection, never as `latest`.
  [[noreturn]] void stop_on_nonfinite(const Batch& batch, const NumericError& error) {
    const fs::path folder = config_.folder() / "checkpoints" / fmt::format("failed-step-{:09}", state_.step);
    if (world_.is_main()) write_checkpoint(folder, *trainer_, state_, resolved_, world_.size());
    fail<NumericError>("step {}: {}; sample ids of this rank: [{}]; state saved in {}", state_.step, error.what(), id_text(batch),
                       folder.string());
  }

  void log_interval(const Loader& loader) {
    last_train_ = metrics_.reduce(world_);
    const double interval = seconds_since(interval_start_), waited = loader.wait_seconds() - waited_before_;
    const auto steps = static_cast<double>(step_seconds_.size());
    state_.seconds += interval;
    const double units = steps * static_cast<double>(loop().batch_size) * trainer_->units_per_sample() / interval;
    const double tflops = steps * static_cast<double>(loop().batch_size) * trainer_->flops_per_sample() / interval * 1e-12;
    if (world_.is_main()) {
      const double p50 = 1e3 * percentile(step_seconds_, 0.5), p95 = 1e3 * percentile(step_seconds_, 0.95);
      std::string note;
      for (const auto& [name, value] : last_train_) note += fmt::format("{} {:.4g}  ", name, value);
      note += fmt::format("{}/s {:.0f}  ms/step {:.0f}/{:.0f} (p50/p95)  data wait {:.0f}%  {}", trainer_->throughput_unit(), units, p50,
                          p95, 100 * waited / interval, human_bytes(static_cast<uint64_t>(peak_memory())));
      progress_->update(state_.step, note);
      Json fields = {{"step", state_.step}, {"images", state_.images}, {"seconds", state_.seconds},
                           {"units_per_second", units}, {"unit", trainer_->throughput_unit()}, {"ms_p50", p50}, {"ms_p95", p95},
                           {"data_wait", waited / interval}, {"tflops_per_second", tflops}, {"peak_bytes", peak_memory()}};
      if (!stage_->name.empty()) fields["stage"] = stage_->name;
      folder_->log("train", fields, last_train_, state_.step);
    }
    step_seconds_.clear();
    waited_before_ = loader.wait_seconds();
    interval_start_ = Clock::now();
  }

  // The same samples each time, in micro-batches of one size of image, each rank an equal share.
  void validate() {
    if (!validation_data_) return;
    const int64_t ranks = world_.size(), micro = std::max<int64_t>(1, loop().batch_size / (ranks * loop().accumulate));
    const Clock::time_point begin = Clock::now();
    Metrics metrics;
    const NoGrad no_grad;
    int64_t used = 0;
    for (const std::vector<int64_t>& indices : validation_batches(*validation_data_, loop().validation_samples, micro, ranks)) {
      const size_t share = indices.size() / static_cast<size_t>(ranks);
      const auto own = std::span(indices).subspan(static_cast<size_t>(world_.rank()) * share, share);
      const Batch batch = load_indices(*validation_data_, own, static_cast<uint64_t>(config_.seed));
      metrics.merge(trainer_->validate(batch.to(world_.device())));
      used += static_cast<int64_t>(indices.size());
    }
    if (used == 0) return;
    last_validation_ = metrics.reduce(world_);
    if (world_.is_main()) {
      folder_->log("validation", {{"step", state_.step}, {"images", state_.images}, {"seconds", state_.seconds}}, last_validation_, state_.step);
      std::string line;
      for (const auto& [name, value] : last_validation_) line += fmt::format(" {} {:.5g}", name, value);
      log::info("{}: step {} validation{} ({} samples, {})", config_.name, state_.step, line, used, human_duration(seconds_since(begin)));
    }
    interval_start_ += Clock::now() - begin;
  }

  void save_samples() {
    if (!world_.is_main()) return;
    const Clock::time_point begin = Clock::now();
    const NoGrad no_grad;
    folder_->save_samples(trainer_->sample_grid(static_cast<uint64_t>(config_.seed)), state_.step);
    interval_start_ += Clock::now() - begin;
  }

  void save() {
    const Clock::time_point begin = Clock::now();
    if (world_.is_main()) {
      write_checkpoint(io::checkpoint_path(config_.folder(), state_.step), *trainer_, state_, resolved_, world_.size());
      io::publish_checkpoint(config_.folder(), state_.step, loop().keep_last);
      folder_->flush();
    }
    interval_start_ += Clock::now() - begin;
  }

  // A signal may reach one rank before another: all of them stop after the same step.
  bool stop_agreed() {
    if (world_.size() == 1) return signals::stop_requested();
    Tensor flag = at::full({1}, signals::stop_requested() ? 1 : 0, at::kLong);
    world_.all_reduce_max(flag);
    return flag.item<int64_t>() != 0;
  }

  RunConfig& config_;
  dist::World& world_;
  const std::string resolved_;
  const std::vector<Stage> stages_;
  const int64_t total_;        // steps of all stages
  const Stage* stage_ = nullptr;
  std::unique_ptr<Dataset> train_data_, validation_data_;
  std::unique_ptr<RunFolder> folder_;  // rank 0
  std::unique_ptr<Trainer> trainer_;
  std::unique_ptr<Progress> progress_;
  CheckpointState state_;
  Metrics metrics_;
  std::map<std::string, double> last_train_, last_validation_;
  std::vector<double> step_seconds_;
  Clock::time_point interval_start_;
  double waited_before_ = 0;
};

}  // namespace

LoopResult run_training(RunConfig& config, dist::World& world, bool resume) {
  if (config.threads > 0)
    at::set_num_threads(static_cast<int>(config.threads));
  else if (world.size() > 1 && !std::getenv("OMP_NUM_THREADS"))  // torchrun and --nproc set it
    at::set_num_threads(static_cast<int>(std::max<int64_t>(1, std::thread::hardware_concurrency() / world.size())));
  const Deterministic deterministic;
  return Loop(config, world, resume).run();
}

}  // namespace fewstep
