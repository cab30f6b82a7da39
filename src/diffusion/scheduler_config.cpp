#include "src/diffusion/scheduler_config.h"

#include <array>
#include <functional>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/table.h"

namespace fewstep::diffusion {
namespace {

// The keys of a class with diffusers' defaults: a missing key has that value. What we compute is read by apply_*; a key that is
// only listed in `fixed` is refused when its value is another one.
struct SchedulerClass {
  std::string_view name;
  SamplerKind sampler;
  const char* defaults;  // JSON of the keys we compute
  const char* fixed;     // JSON of the others
};
constexpr std::array<SchedulerClass, 9> kSchedulerClasses{{
    {"DDPMScheduler", SamplerKind::ddpm,
     R"({"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "variance_type": "fixed_small",
         "clip_sample": true, "prediction_type": "epsilon", "clip_sample_range": 1.0, "timestep_spacing": "leading", "steps_offset": 0,
         "rescale_betas_zero_snr": false})",
     R"({"trained_betas": null, "thresholding": false})"},
    {"DDIMScheduler", SamplerKind::ddim,
     R"({"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": true,
         "set_alpha_to_one": true, "steps_offset": 0, "prediction_type": "epsilon", "clip_sample_range": 1.0,
         "timestep_spacing": "leading", "rescale_betas_zero_snr": false})",
     R"({"trained_betas": null, "thresholding": false})"},
    {"EulerDiscreteScheduler", SamplerKind::euler,
     R"({"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "epsilon",
         "use_karras_sigmas": false, "use_exponential_sigmas": false, "sigma_min": null, "sigma_max": null,
         "timestep_spacing": "linspace", "steps_offset": 0, "rescale_betas_zero_snr": false, "final_sigmas_type": "zero"})",
     R"({"trained_betas": null, "interpolation_type": "linear", "use_beta_sigmas": false, "timestep_type": "discrete"})"},
    {"EulerAncestralDiscreteScheduler", SamplerKind::euler_ancestral,
     R"({"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "epsilon",
         "timestep_spacing": "linspace", "steps_offset": 0, "rescale_betas_zero_snr": false})",
     R"({"trained_betas": null})"},
    {"HeunDiscreteScheduler", SamplerKind::heun,
     R"({"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "prediction_type": "epsilon",
         "use_karras_sigmas": false, "use_exponential_sigmas": false, "clip_sample": false, "clip_sample_range": 1.0,
         "timestep_spacing": "linspace", "steps_offset": 0})",
     R"({"trained_betas": null, "use_beta_sigmas": false})"},
    {"DPMSolverMultistepScheduler", SamplerKind::dpmpp_2m,
     R"({"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "epsilon",
         "lower_order_final": true, "use_karras_sigmas": false, "use_exponential_sigmas": false, "final_sigmas_type": "zero",
         "timestep_spacing": "linspace", "steps_offset": 0, "rescale_betas_zero_snr": false})",
     R"({"trained_betas": null, "solver_order": 2, "thresholding": false, "algorithm_type": "dpmsolver++", "solver_type": "midpoint",
         "euler_at_final": false, "use_beta_sigmas": false, "use_lu_lambdas": false, "use_flow_sigmas": false, "flow_shift": 1.0,
         "variance_type": null, "use_dynamic_shifting": false})"},
    {"LCMScheduler", SamplerKind::lcm,
     R"({"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
         "original_inference_steps": 50, "clip_sample": false, "clip_sample_range": 1.0, "prediction_type": "epsilon",
         "timestep_scaling": 10.0, "rescale_betas_zero_snr": false})",
     R"({"trained_betas": null, "thresholding": false})"},
    {"FlowMatchEulerDiscreteScheduler", SamplerKind::flow_euler,
     R"({"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": false, "base_shift": 0.5, "max_shift": 1.15,
         "base_image_seq_len": 256, "max_image_seq_len": 4096, "shift_terminal": null, "use_karras_sigmas": false,
         "use_exponential_sigmas": false, "time_shift_type": "exponential", "stochastic_sampling": false})",
     R"({"invert_sigmas": false, "use_beta_sigmas": false})"},
    {"FewstepEDMScheduler", SamplerKind::heun,
     R"({"num_train_timesteps": 1000, "prediction_type": "v_prediction", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 1.0,
         "sampler": "heun", "timestep_spacing": "karras"})",
     "{}"},
}};

// One class's file: defaults under what is given; every read names file, key and value.
class SchedulerFields {
 public:
  SchedulerFields(const Json& json, const SchedulerClass& kind, std::string_view where) : values_(Json::parse(kind.defaults)), where_(where) {
    for (auto& [key, value] : values_.items())
      if (const auto it = json.find(key); it != json.end() && !(it->is_null() && !value.is_null())) values_[key] = *it;
    const Json fixed = Json::parse(kind.fixed);
    for (const auto& [key, value] : fixed.items())
      if (const auto it = json.find(key); it != json.end() && !it->is_null() && *it != value)
        fail<ConfigError>("{}: {} of {} is {}: only {} is supported", where, key, kind.name, it->dump(), value.dump());
    // -Infinity, its default, is no number of JSON: a string here.
    if (const auto it = json.find("lambda_min_clipped"); it != json.end() && it->is_number())
      fail<ConfigError>("{}: lambda_min_clipped of {} is {}: clipping of ln(alpha / sigma) is not supported", where, kind.name, it->dump());
  }
  bool has(const char* key) const { return values_.contains(key); }
  bool is_null(const char* key) const { return !has(key) || values_[key].is_null(); }
  double number(const char* key) const { return expect(values_[key].is_number(), key, "a number").get<double>(); }
  int64_t integer(const char* key) const { return expect(values_[key].is_number_integer(), key, "an integer").get<int64_t>(); }
  bool flag(const char* key) const { return has(key) && expect(values_[key].is_boolean(), key, "true or false").get<bool>(); }
  std::string text(const char* key) const { return expect(values_[key].is_string(), key, "a string").get<std::string>(); }
  [[noreturn]] void refuse(const char* key, std::string_view known) const {
    fail<ConfigError>("{}: {} is {}: only {} are supported", where_, key, values_[key].dump(), known);
  }
  const std::string& where() const { return where_; }

 private:
  const Json& expect(bool ok, const char* key, const char* what) const {
    if (!ok) fail<ConfigError>("{}: {}: expected {}, found {}", where_, key, what, values_[key].dump());
    return values_[key];
  }
  Json values_;
  std::string where_;
};

void apply_betas(const SchedulerFields& f, SchedulerConfig* out) {
  ScheduleConfig& s = out->schedule;
  const std::string kind = f.text("beta_schedule");
  if (kind == "linear")
    s.kind = ScheduleKind::linear;
  else if (kind == "scaled_linear")
    s.kind = ScheduleKind::scaled_linear;
  else if (kind == "squaredcos_cap_v2")
    s.kind = ScheduleKind::cosine;
  else
    f.refuse("beta_schedule", "linear, scaled_linear and squaredcos_cap_v2");
  s.beta_start = f.number("beta_start");
  s.beta_end = f.number("beta_end");
  s.zero_terminal_snr = f.flag("rescale_betas_zero_snr");
}

Spacing spacing_named(const SchedulerFields& f) {
  const std::string name = f.text("timestep_spacing");
  for (const config::Choice& choice : spacing_choices().first(3))
    if (choice.name == name) return static_cast<Spacing>(choice.value);
  f.refuse("timestep_spacing", "leading, trailing and linspace");
}

// use_karras_sigmas and use_exponential_sigmas between the ends of `base`.
void apply_curve(const SchedulerFields& f, Spacing base, SamplingConfig* out) {
  out->spacing = base;
  const bool karras = f.flag("use_karras_sigmas"), exponential = f.flag("use_exponential_sigmas");
  if (karras && exponential) fail<ConfigError>("{}: use_karras_sigmas and use_exponential_sigmas are both on", f.where());
  if (!karras && !exponential) return;
  out->range = base;
  out->spacing = karras ? Spacing::karras : Spacing::exponential;
  if (!f.is_null("sigma_min")) out->sigma_min = f.number("sigma_min");
  if (!f.is_null("sigma_max")) out->sigma_max = f.number("sigma_max");
}

void apply_sampling(const SchedulerFields& f, SamplingConfig* out) {
  if (f.has("steps_offset")) out->steps_offset = f.integer("steps_offset");
  if (f.flag("clip_sample")) out->clip_sample = f.number("clip_sample_range");
  if (f.has("set_alpha_to_one")) out->end_clean = f.flag("set_alpha_to_one");
  if (f.has("lower_order_final")) out->lower_order_final = f.flag("lower_order_final");
  if (f.has("original_inference_steps")) out->original_steps = f.integer("original_inference_steps");
  if (f.has("timestep_scaling")) out->timestep_scaling = f.number("timestep_scaling");
  if (f.has("final_sigmas_type")) {
    const std::string end = f.text("final_sigmas_type");
    if (end != "zero" && end != "sigma_min") f.refuse("final_sigmas_type", "zero and sigma_min");
    out->end_clean = end == "zero";
  }
  if (f.has("variance_type")) {
    const std::string variance = f.text("variance_type");
    if (variance != "fixed_small" && variance != "fixed_small_log" && variance != "fixed_large")
      f.refuse("variance_type", "fixed_small, fixed_small_log and fixed_large");
    out->large_variance = variance == "fixed_large";
  }
}

void apply_flow(const SchedulerFields& f, SchedulerConfig* out) {
  ScheduleConfig& s = out->schedule;
  s.kind = ScheduleKind::flow;
  s.shift = f.number("shift");
  s.dynamic_shift = f.flag("use_dynamic_shifting");
  s.base_shift = f.number("base_shift");
  s.max_shift = f.number("max_shift");
  s.base_length = f.integer("base_image_seq_len");
  s.max_length = f.integer("max_image_seq_len");
  if (!f.is_null("shift_terminal")) s.shift_terminal = f.number("shift_terminal");
  const std::string kind = f.text("time_shift_type");
  if (kind != "exponential" && kind != "linear") f.refuse("time_shift_type", "exponential and linear");
  s.shift_kind = kind == "linear" ? ShiftKind::linear : ShiftKind::exponential;
  out->prediction = Prediction::flow;
  // Pipelines pass sigmas 1 .. 1 / n where the shift is dynamic; the scheduler's own grid goes down to the last training sigma.
  apply_curve(f, s.dynamic_shift ? Spacing::trailing : Spacing::linspace, &out->sampling);
  if (f.flag("stochastic_sampling")) {  // x0, then fresh noise
    out->sampling.sampler = SamplerKind::lcm;
    out->sampling.timestep_scaling = 0.0;
  }
}

void apply_edm(const SchedulerFields& f, SchedulerConfig* out) {
  ScheduleConfig& s = out->schedule;
  s.kind = ScheduleKind::edm;
  s.sigma_min = f.number("sigma_min");
  s.sigma_max = f.number("sigma_max");
  s.sigma_data = f.number("sigma_data");
  out->prediction = prediction_of(f.text("prediction_type"), f.where());
  const std::string sampler = f.text("sampler"), spacing = f.text("timestep_spacing");
  for (const config::Choice& choice : sampler_choices())
    if (choice.name == sampler) out->sampling.sampler = static_cast<SamplerKind>(choice.value);
  for (const config::Choice& choice : spacing_choices())
    if (choice.name == spacing) out->sampling.spacing = static_cast<Spacing>(choice.value);
  if (name_of(out->sampling.sampler) != sampler) f.refuse("sampler", "the samplers of this program");
  if (name_of(out->sampling.spacing) != spacing) f.refuse("timestep_spacing", "the spacings of this program");
}

const SchedulerClass& class_for(const SchedulerConfig& c) {
  const ScheduleKind kind = c.schedule.kind;
  std::string_view name;
  if (kind == ScheduleKind::edm) {
    name = "FewstepEDMScheduler";
  } else if (kind == ScheduleKind::flow) {
    const SamplerKind sampler = c.sampling.sampler;
    const bool euler = sampler == SamplerKind::flow_euler || sampler == SamplerKind::euler || (sampler == SamplerKind::ddim && c.sampling.eta == 0.0);
    if (euler || sampler == SamplerKind::lcm) name = "FlowMatchEulerDiscreteScheduler";
  } else {
    for (const SchedulerClass& entry : kSchedulerClasses)
      if (entry.sampler == c.sampling.sampler && entry.name != "FewstepEDMScheduler" && entry.name != "FlowMatchEulerDiscreteScheduler") name = entry.name;
    if (c.sampling.sampler == SamplerKind::flow_euler) name = "EulerDiscreteScheduler";  // the same steps
  }
  if (name.empty())
    fail<ConfigError>("scheduler: no scheduler of diffusers samples a {} schedule with {}; take {}", name_of(kind), name_of(c.sampling.sampler),
                      kind == ScheduleKind::flow ? "flow_euler or lcm" : "euler");
  return find_entry<SchedulerClass>(kSchedulerClasses, name, "scheduler");
}

// A setting that the class has no key for.
void only_default(bool is_default, const SchedulerClass& kind, std::string_view what) {
  if (!is_default) fail<ConfigError>("scheduler: {} cannot be written into diffusers' {}: take its default, or another sampler", what, kind.name);
}

void write_schedule(const SchedulerConfig& c, const SchedulerClass& kind, Json* out) {
  const ScheduleConfig& s = c.schedule;
  Json& j = *out;
  j["num_train_timesteps"] = s.num_train_timesteps;
  if (s.kind == ScheduleKind::flow) {
    only_default(c.prediction == Prediction::flow, kind, "a prediction other than flow");
    j["shift"] = s.shift;
    j["use_dynamic_shifting"] = s.dynamic_shift;
    j["base_shift"] = s.base_shift;
    j["max_shift"] = s.max_shift;
    j["base_image_seq_len"] = s.base_length;
    j["max_image_seq_len"] = s.max_length;
    if (s.shift_terminal > 0.0) j["shift_terminal"] = s.shift_terminal;
    j["time_shift_type"] = s.shift_kind == ShiftKind::linear ? "linear" : "exponential";
    j["stochastic_sampling"] = c.sampling.sampler == SamplerKind::lcm;
    return;
  }
  j["prediction_type"] = name_of(c.prediction);
  if (s.kind == ScheduleKind::edm) {
    j["sigma_min"] = s.sigma_min;
    j["sigma_max"] = s.sigma_max;
    j["sigma_data"] = s.sigma_data;
    j["sampler"] = name_of(c.sampling.sampler);
    return;
  }
  only_default(c.prediction != Prediction::flow, kind, "a flow prediction of a beta schedule");
  only_default(c.prediction != Prediction::sample || c.sampling.sampler != SamplerKind::euler_ancestral, kind, "a sample prediction");
  j["beta_schedule"] = s.kind == ScheduleKind::cosine ? "squaredcos_cap_v2" : name_of(s.kind);
  j["beta_start"] = s.beta_start;
  j["beta_end"] = s.beta_end;
  if (j.contains("rescale_betas_zero_snr")) j["rescale_betas_zero_snr"] = s.zero_terminal_snr;
  only_default(j.contains("rescale_betas_zero_snr") || !s.zero_terminal_snr, kind, "zero_terminal_snr");
}

void write_sampling(const SchedulerConfig& c, const SchedulerClass& kind, Json* out) {
  const SamplingConfig& s = c.sampling;
  Json& j = *out;
  const bool curved = s.spacing == Spacing::karras || s.spacing == Spacing::exponential;
  if (c.schedule.kind == ScheduleKind::edm) {
    j["timestep_spacing"] = name_of(s.spacing);
    return;
  }
  const bool lcm = s.sampler == SamplerKind::lcm;
  only_default(!curved || j.contains("use_karras_sigmas"), kind, "karras or exponential spacing");
  if (curved) j[s.spacing == Spacing::karras ? "use_karras_sigmas" : "use_exponential_sigmas"] = true;
  const Spacing ends = curved ? s.range : s.spacing;
  if (c.schedule.kind == ScheduleKind::flow) return;  // its grid is the pipeline's choice
  if (!lcm) j["timestep_spacing"] = name_of(ends);
  if (j.contains("steps_offset")) j["steps_offset"] = s.steps_offset;
  if (j.contains("sigma_min") && s.sigma_min > 0.0) j["sigma_min"] = s.sigma_min;
  if (j.contains("sigma_max") && s.sigma_max > 0.0) j["sigma_max"] = s.sigma_max;
  only_default(j.contains("sigma_min") || (s.sigma_min == 0.0 && s.sigma_max == 0.0), kind, "sigma_min or sigma_max");
  only_default(j.contains("clip_sample") || s.clip_sample == 0.0, kind, "clip_sample");
  if (j.contains("clip_sample")) {
    j["clip_sample"] = s.clip_sample > 0.0;
    if (s.clip_sample > 0.0) j["clip_sample_range"] = s.clip_sample;
  }
  only_default(s.end_clean || lcm || j.contains("set_alpha_to_one") || j.contains("final_sigmas_type"), kind, "end_clean: false");
  if (j.contains("set_alpha_to_one")) j["set_alpha_to_one"] = s.end_clean;
  if (j.contains("final_sigmas_type")) j["final_sigmas_type"] = s.end_clean ? "zero" : "sigma_min";
  if (j.contains("variance_type")) j["variance_type"] = s.large_variance ? "fixed_large" : "fixed_small";
  if (j.contains("lower_order_final")) j["lower_order_final"] = s.lower_order_final;
  if (lcm) {
    j["original_inference_steps"] = s.original_steps;
    // x0 as it is: scaled so far that c_skip is nothing from timestep 1 on.
    j["timestep_scaling"] = s.timestep_scaling > 0.0 ? s.timestep_scaling : 1e6;
  }
}

}  // namespace

SchedulerConfig read_scheduler_config(const Json& json, std::string_view where) {
  if (!json.is_object() || !json.contains("_class_name") || !json["_class_name"].is_string())
    fail<ConfigError>("{}: _class_name does not name a scheduler", where);
  const SchedulerClass& kind =
      find_entry<SchedulerClass>(kSchedulerClasses, json["_class_name"].get<std::string>(), fmt::format("scheduler in {}", where));
  const SchedulerFields fields(json, kind, where);
  SchedulerConfig out;
  out.sampling.sampler = kind.sampler;
  out.schedule.num_train_timesteps = fields.integer("num_train_timesteps");
  if (kind.sampler == SamplerKind::flow_euler) {
    apply_flow(fields, &out);
  } else if (kind.name == "FewstepEDMScheduler") {
    apply_edm(fields, &out);
  } else {
    apply_betas(fields, &out);
    out.prediction = prediction_of(fields.text("prediction_type"), where);
    if (out.prediction == Prediction::flow) fields.refuse("prediction_type", "epsilon, v_prediction and sample");
    if (kind.sampler != SamplerKind::lcm) apply_curve(fields, spacing_named(fields), &out.sampling);
    apply_sampling(fields, &out.sampling);
  }
  const Schedule checked(out.schedule);  // its own errors
  return out;
}

// Python writes -Infinity, which is not JSON, as the default of DPM-Solver's lambda_min_clipped. It becomes a string.
static std::string without_infinities(std::string text) {
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;
    } else if (text[i] == '"') {
      quoted = !quoted;
    } else if (!quoted) {
      for (const std::string_view word : {"-Infinity", "Infinity", "NaN"})
        if (text.compare(i, word.size(), word) == 0) {
          text.replace(i, word.size(), fmt::format("\"{}\"", word));
          i += word.size() + 1;
          break;
        }
    }
  }
  return text;
}

SchedulerConfig load_scheduler_config(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "scheduler_config.json";
  try {
    return read_scheduler_config(Json::parse(without_infinities(read_text(path))), path.string());
  } catch (const nlohmann::json::parse_error& e) {
    fail<DataError>("{}: not valid JSON at byte {}: {}", path.string(), e.byte, e.what());
  }
}

Json scheduler_json(const SchedulerConfig& config) {
  const SchedulerClass& kind = class_for(config);
  Json out = Json::parse(kind.defaults);
  write_schedule(config, kind, &out);
  write_sampling(config, kind, &out);
  Json named = {{"_class_name", kind.name}, {"_diffusers_version", "0.30.0"}};
  named.update(out);
  return named;
}

Json scheduler_json(const ScheduleConfig& schedule, Prediction prediction, SamplerKind sampler) {
  SchedulerConfig config{.schedule = schedule, .prediction = prediction, .sampling = {.sampler = sampler}};
  SamplingConfig& s = config.sampling;
  if (schedule.kind == ScheduleKind::edm) s.spacing = Spacing::karras;
  // As released SDXL models have it; their first timestep must not be pure noise, hence trailing with zero terminal SNR.
  if (sampler == SamplerKind::euler && schedule.kind == ScheduleKind::scaled_linear && !schedule.zero_terminal_snr) {
    s.spacing = Spacing::leading;
    s.steps_offset = 1;
  }
  return scheduler_json(config);
}

void save_scheduler_config(const std::filesystem::path& folder, const SchedulerConfig& config) {
  make_directories(folder);
  write_json(folder / "scheduler_config.json", scheduler_json(config));
}

std::string scheduler_class_of(const SchedulerConfig& config) { return std::string(class_for(config).name); }

}  // namespace fewstep::diffusion
