#include "src/diffusion/verify_scheduler.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/diffusion/samplers.h"
#include "src/diffusion/scheduler_config.h"
#include "src/io/safetensors.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::diffusion {
namespace {

struct TraceCase {
  SchedulerConfig config;
  TensorMap inputs, expected;
};

// Numbers of `args` that set_timesteps of some class takes.
void apply_arguments(const Json& file, const std::string& where, SamplingConfig* out) {
  const Json args = file.value("args", Json::object()), step = file.value("step_kwargs", Json::object());
  for (const auto& [key, value] : args.items()) {
    if (key == "num_inference_steps")
      out->steps = value.get<int64_t>();
    else if (key == "original_inference_steps")
      out->original_steps = value.get<int64_t>();
    else if (key == "image_seq_len")
      out->tokens = value.get<int64_t>();
    else if (key == "mu")
      out->mu = value.get<double>();
    else if (key == "timesteps")
      out->timesteps = value.get<std::vector<double>>();
    else
      fail<DataError>("{}: argument '{}' of set_timesteps is not known here", where, key);
  }
  for (const auto& [key, value] : step.items()) {
    if (key != "eta") fail<DataError>("{}: argument '{}' of step is not known here", where, key);
    out->eta = value.get<double>();
  }
}

TraceCase read_trace(const std::filesystem::path& folder) {
  TraceCase out{.config = load_scheduler_config(folder), .inputs = {}, .expected = {}};
  for (auto& [name, tensor] : io::Safetensors(folder / "io.safetensors").all()) {
    if (name.starts_with("input.")) out.inputs[name.substr(6)] = tensor;
    if (name.starts_with("expected.")) out.expected[name.substr(9)] = tensor;
  }
  const std::filesystem::path path = folder / "case.json";
  if (std::filesystem::exists(path)) try {
      apply_arguments(read_json(path), path.string(), &out.config.sampling);
    } catch (const nlohmann::json::exception& e) {
      fail<DataError>("{}: an argument of the wrong type: {}", path.string(), e.what());
    }
  if (out.expected.empty()) fail<DataError>("{}: no tensor named 'expected.*'", (folder / "io.safetensors").string());
  return out;
}

// diffusers' classes in the variance of k-diffusion step x / alpha; ours step x.
bool steps_unscaled(const SchedulerConfig& c) {
  const SamplerKind kind = c.sampling.sampler;
  return c.schedule.kind != ScheduleKind::flow &&
         (kind == SamplerKind::euler || kind == SamplerKind::euler_ancestral || kind == SamplerKind::heun);
}

// Level of every network call: Heun calls twice at the inner points, and has them twice in its lists.
std::vector<int64_t> points_of_calls(const SamplingPlan& plan, SamplerKind sampler) {
  std::vector<int64_t> out;
  for (int64_t i = 0; i < plan.steps(); ++i)
    for (int64_t k = 0; k < (sampler == SamplerKind::heun && i > 0 ? 2 : 1); ++k) out.push_back(i);
  return out;
}

Tensor row_of(const std::vector<double>& values, at::ScalarType type) {
  return at::tensor(at::ArrayRef<double>(values), at::TensorOptions(at::kDouble)).to(type);
}

struct Tracer {
  const TraceCase& golden;
  Schedule schedule;
  SamplingPlan plan;
  TensorMap produced = {};

  const Tensor* input(const std::string& name) const {
    const auto it = golden.inputs.find(name);
    return it == golden.inputs.end() ? nullptr : &it->second;
  }
  double lift(int64_t point) const { return steps_unscaled(golden.config) ? 1.0 / plan.alphas[static_cast<size_t>(point)] : 1.0; }

  void tables() {
    const std::vector<int64_t> calls = points_of_calls(plan, golden.config.sampling.sampler);
    std::vector<double> times, sigmas;
    const bool flow = golden.config.schedule.kind == ScheduleKind::flow;
    const auto level = [&](int64_t i) { return flow ? plan.sigmas[static_cast<size_t>(i)] : plan.ratio(i); };
    for (const int64_t i : calls) {
      times.push_back(plan.timesteps[static_cast<size_t>(i)]);
      sigmas.push_back(level(i));
    }
    sigmas.push_back(level(plan.steps()));
    const bool whole = !flow && !steps_unscaled(golden.config);
    produced["timesteps"] = row_of(times, whole ? at::kLong : at::kFloat);
    produced["sigmas"] = row_of(sigmas, at::kFloat);
    if (schedule.discrete()) {
      produced["alphas_cumprod"] = schedule.alphas_cumprod().clone();
      // Kept positive by the classes that divide by it.
      if (golden.config.schedule.zero_terminal_snr && golden.expected.contains("sigmas"))
        produced["alphas_cumprod"].narrow(0, schedule.config().num_train_timesteps - 1, 1).fill_(std::pow(2.0, -24));
    }
  }

  // Runs the sampler on the recorded outputs, in float64: what differs is then the formula or the file's own rounding. What
  // the network is given at call k is the sample after call k - 1.
  void trace() {
    const Tensor *start = input("initial_sample"), *outputs = input("model_outputs"), *noises = input("step_noises_in_call_order");
    if (start == nullptr || outputs == nullptr) return;
    const std::vector<int64_t> calls = points_of_calls(plan, golden.config.sampling.sampler);
    if (outputs->size(0) != static_cast<int64_t>(calls.size()))
      fail<DataError>("input.model_outputs has {} rows, and {} makes {} calls", outputs->size(0),
                      name_of(golden.config.sampling.sampler), calls.size());
    std::vector<Tensor> seen;
    const Network network = [&](const Tensor& x, double) {
      seen.push_back(x);
      return outputs->select(0, static_cast<int64_t>(seen.size()) - 1);
    };
    // A draw that is multiplied by zero in the last step is not always recorded.
    const NoiseSource noise = [&](int64_t step) {
      return noises != nullptr && step < noises->size(0) ? noises->select(0, step) : at::zeros_like(*start);
    };
    const Tensor end = sample(schedule, plan, golden.config.prediction, golden.config.sampling, network, start->to(at::kDouble) / lift(0), noise);
    std::vector<Tensor> after;
    for (size_t k = 1; k < seen.size(); ++k) after.push_back(seen[k] * lift(calls[k]));
    after.push_back(end * lift(plan.steps()));
    produced["scaled_model_inputs"] = at::stack(seen);
    produced["samples_after_each_step"] = at::stack(after);
  }

  // Plan point of every timestep asked for, by value; of equal ones the second, as diffusers looks them up.
  std::optional<std::vector<int64_t>> points_at(const Tensor& t) const {
    std::vector<int64_t> out;
    for (int64_t k = 0; k < t.numel(); ++k) {
      const double wanted = t.select(0, k).item<double>();
      const auto equal = [&](double have) { return std::abs(have - wanted) < 1e-3; };
      auto it = std::find_if(plan.timesteps.begin(), plan.timesteps.end(), equal);
      if (it == plan.timesteps.end()) return std::nullopt;
      if (it + 1 != plan.timesteps.end() && equal(it[1])) ++it;
      out.push_back(it - plan.timesteps.begin());
    }
    return out;
  }

  void forward_process() {
    const Tensor *x0 = input("add_noise_x0"), *eps = input("add_noise_eps"), *t = input("add_noise_timesteps");
    if (x0 == nullptr || eps == nullptr || t == nullptr) return;
    const bool of_plan = steps_unscaled(golden.config) || golden.config.sampling.sampler == SamplerKind::dpmpp_2m ||
                         golden.config.schedule.kind == ScheduleKind::flow;
    Tensor when = *t;
    if (of_plan) {  // these classes know only the timesteps of their plan
      const auto points = points_at(*t);
      if (!points) return;
      std::vector<double> alphas, sigmas, indices;
      for (const int64_t i : *points) {
        alphas.push_back(plan.alphas[static_cast<size_t>(i)] * lift(i));
        sigmas.push_back(plan.sigmas[static_cast<size_t>(i)] * lift(i));
        indices.push_back(static_cast<double>(i));
      }
      const auto level = [&](const std::vector<double>& l) { return append_dims(row_of(l, x0->scalar_type()), x0->dim()); };
      produced["add_noise"] = level(alphas) * *x0 + level(sigmas) * *eps;
      // EulerDiscreteScheduler.get_velocity reads its training table at the *number of the step* (diffusers 0.42). Not a rule
      // to train by, but what the file holds.
      when = row_of(indices, at::kLong);
    } else {
      produced["add_noise"] = add_noise(schedule, *x0, *eps, *t);
    }
    if (schedule.discrete())
      produced["velocity"] = prediction_target(Prediction::v_prediction, *x0, *eps, schedule.alpha(when), schedule.sigma(when));
  }
};

// Classes in the variance of k-diffusion add to float32 numbers as large as their first sigma: that is 4096 at a zero terminal
// SNR and 20291 for the cosine schedule. What they write down then has lost that many digits, of which ours are not to blame.
std::optional<double> limit_for(const std::string& name, const TraceCase& golden, const models::VerifyOptions& options) {
  const auto it = golden.expected.find("sigmas");
  const bool of_steps = name == "samples_after_each_step" || name == "scaled_model_inputs";
  if (options.limit || !of_steps || !steps_unscaled(golden.config) || it == golden.expected.end()) return options.limit;
  return 1e-4 + 2.4e-7 * it->second.max().item<double>();
}

}  // namespace

models::VerifyReport verify_scheduler(const std::filesystem::path& folder, const models::VerifyOptions& options) {
  const TraceCase golden = read_trace(folder);
  const Schedule schedule(golden.config.schedule);
  Tracer tracer{.golden = golden, .schedule = schedule, .plan = make_plan(schedule, golden.config.sampling)};
  tracer.tables();
  tracer.trace();
  tracer.forward_process();
  models::VerifyReport report;
  for (const auto& [name, expected] : golden.expected) {
    const auto it = tracer.produced.find(name);
    models::VerifyLine line{.name = name, .verdict = models::Verdict::not_produced};
    if (it != tracer.produced.end()) line = models::compare(name, expected, it->second, limit_for(name, golden, options));
    report.passed = report.passed && line.verdict != models::Verdict::fail && !(options.all && line.verdict == models::Verdict::not_produced);
    report.lines.push_back(line);
  }
  return report;
}

}  // namespace fewstep::diffusion
