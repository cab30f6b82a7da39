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

double percentile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  const size_t k = std::min(values.size() - 1, static_cast<size_t>(q * static_cast<double>(values.size())));
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(k), values.end());
  return values[k];
}

void check_batch(const LoopConfig& c, int ranks) {
  const int64_t parts = c.accumulate * ranks;
  if (c.batch_size % parts != 0)
    fail<ConfigError>("loop.batch_size {} is not divisible by {} ranks x {} accumulated micro-steps; the nearest that are: {} and {}",
                      c.batch_size, ranks, c.accumulate, std::max<int64_t>(c.batch_size / parts, 1) * parts,
                      (c.batch_size / parts + 1) * parts);
}

// One run in progress. The step itself is the trainer's; everything around it is here.
class Loop {
 public:
  Loop(RunConfig& config, dist::World& world, bool resume) : config_(config), world_(world), resolved_(config::to_yaml(config)) {
    check_batch(config.loop, world.size());
    open_folder(resume);
    train_data_ = config.data->build(Split::train);
    if (train_data_->size() == 0) fail<DataError>("data: the train split of {} is empty", train_data_->description());
    if (config.loop.validation_samples > 0) validation_data_ = config.data->build(Split::heldout);
    log::info("{}: {}", config.name, train_data_->description());
    trainer_ = config.trainer->build({.world = world, .seed = static_cast<uint64_t>(config.seed), .total_steps = config.loop.steps,
                                      .batch_size = config.loop.batch_size, .accumulate = config.loop.accumulate,
                                      .train = *train_data_, .validation = validation_data_.get()});
    if (resume) restore();
  }

  LoopResult run() {
    const LoopConfig& c = config_.loop;
    Loader loader(*train_data_, {.batch_size = c.batch_size, .rank = world_.rank(), .world_size = world_.size(),
                                 .seed = static_cast<uint64_t>(config_.seed), .first_step = state_.step, .workers = c.workers,
                                 .prefetch = c.prefetch});
    if (world_.is_main()) progress_ = std::make_unique<Progress>(config_.name, c.steps, state_.step);
    interval_start_ = Clock::now();
    while (state_.step < c.steps) {
      const Batch batch = loader.next().to(world_.device());
      train_step(batch);
      const bool last = state_.step == c.steps;
      if (state_.step % c.log_every == 0 || last) log_interval(loader);
      if (last || due(c.validate_every)) validate();
      if (last || due(c.sample_every)) save_samples();
      const bool stop = stop_agreed();
      if (last || due(c.checkpoint_every) || stop) save();
      if (stop && !last) throw Interrupted(fmt::format("stopped at step {} of {}; continue with --resume", state_.step, c.steps));
    }
    if (progress_) progress_->finish();
    world_.barrier();
    return {.steps = state_.step, .seconds = state_.seconds, .last_train = last_train_, .last_validation = last_validation_};
  }

 private:
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

  void restore() {
    const auto found = io::find_checkpoint(config_.folder());
    if (!found) {
      log::info("{}: nothing to resume in {}, starting from the beginning", config_.name, config_.folder().string());
      return;
    }
    state_ = read_checkpoint(*found, *trainer_, resolved_, world_.size());
    log::info("{}: resumed from {} (step {} of {})", config_.name, found->filename().string(), state_.step, config_.loop.steps);
  }

  void train_step(const Batch& batch) {
    const Clock::time_point begin = Clock::now();
    state_.epoch = state_.step * config_.loop.batch_size / train_data_->size();
    try {
      metrics_.merge(trainer_->step(batch, {.step = state_.step, .epoch = state_.epoch, .seed = static_cast<uint64_t>(config_.seed)}));
    } catch (const NumericError& e) {
      stop_on_nonfinite(batch, e);
    }
    step_seconds_.push_back(seconds_since(begin));
    state_.step += 1;
    state_.images += config_.loop.batch_size;
  }

  // The weights are as before the step: they are kept for inspection, never as `latest`.
  [[noreturn]] void stop_on_nonfinite(const Batch& batch, const NumericError& error) {
    const Tensor ids = batch.ids.to(at::kCPU).contiguous();
    const fs::path folder = config_.folder() / "checkpoints" / fmt::format("failed-step-{:09}", state_.step);
    if (world_.is_main()) write_checkpoint(folder, *trainer_, state_, resolved_, world_.size());
    fail<NumericError>("step {}: {}; sample ids of this rank: [{}]; state saved in {}", state_.step, error.what(),
                       fmt::join(ids.const_data_ptr<int64_t>(), ids.const_data_ptr<int64_t>() + ids.numel(), ", "), folder.string());
  }

  void log_interval(const Loader& loader) {
    last_train_ = metrics_.reduce(world_);
    const double interval = seconds_since(interval_start_), waited = loader.wait_seconds() - waited_before_;
    const auto steps = static_cast<double>(step_seconds_.size());
    state_.seconds += interval;
    const double units = steps * static_cast<double>(config_.loop.batch_size) * trainer_->units_per_sample() / interval;
    const double tflops = steps * static_cast<double>(config_.loop.batch_size) * trainer_->flops_per_sample() / interval * 1e-12;
    if (world_.is_main()) {
      const double p50 = 1e3 * percentile(step_seconds_, 0.5), p95 = 1e3 * percentile(step_seconds_, 0.95);
      std::string note;
      for (const auto& [name, value] : last_train_) note += fmt::format("{} {:.4g}  ", name, value);
      note += fmt::format("{}/s {:.0f}  ms/step {:.0f}/{:.0f} (p50/p95)  data wait {:.0f}%  {}", trainer_->throughput_unit(), units, p50,
                          p95, 100 * waited / interval, human_bytes(static_cast<uint64_t>(peak_memory())));
      progress_->update(state_.step, note);
      const Json fields = {{"step", state_.step}, {"images", state_.images}, {"seconds", state_.seconds},
                           {"units_per_second", units}, {"unit", trainer_->throughput_unit()}, {"ms_p50", p50}, {"ms_p95", p95},
                           {"data_wait", waited / interval}, {"tflops_per_second", tflops}, {"peak_bytes", peak_memory()}};
      folder_->log("train", fields, last_train_, state_.step);
    }
    step_seconds_.clear();
    waited_before_ = loader.wait_seconds();
    interval_start_ = Clock::now();
  }

  // The same samples each time, in micro-batches, each rank an equal share (the total is a multiple of the ranks).
  void validate() {
    const int64_t ranks = world_.size();
    const int64_t available = validation_data_ ? std::min(config_.loop.validation_samples, validation_data_->size()) : 0;
    const int64_t total = available / ranks * ranks;
    if (total == 0) return;
    const Clock::time_point begin = Clock::now();
    const int64_t micro = std::max<int64_t>(1, config_.loop.batch_size / (ranks * config_.loop.accumulate));
    Metrics metrics;
    const NoGrad no_grad;
    for (int64_t start = 0; start < total; start += micro * ranks) {
      const int64_t share = std::min(micro, (total - start) / ranks), first = start + world_.rank() * share;
      const Batch batch = load_range(*validation_data_, first, first + share, static_cast<uint64_t>(config_.seed));
      metrics.merge(trainer_->validate(batch.to(world_.device())));
    }
    last_validation_ = metrics.reduce(world_);
    if (world_.is_main()) {
      folder_->log("validation", {{"step", state_.step}, {"images", state_.images}, {"seconds", state_.seconds}}, last_validation_, state_.step);
      std::string line;
      for (const auto& [name, value] : last_validation_) line += fmt::format(" {} {:.5g}", name, value);
      log::info("{}: step {} validation{} ({} samples, {})", config_.name, state_.step, line, total, human_duration(seconds_since(begin)));
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
      io::publish_checkpoint(config_.folder(), state_.step, config_.loop.keep_last);
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
