#include "src/diffusion/scheduler_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/message_of.h"
#include "tests/support/scratch.h"

namespace fewstep::diffusion {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// The file of the released base model, stray keys included.
const char* kSdxlBase = R"({"_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0", "beta_end": 0.012,
  "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": false, "interpolation_type": "linear",
  "num_train_timesteps": 1000, "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": false,
  "skip_prk_steps": true, "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": null, "use_karras_sigmas": false})";

TEST(SchedulerConfig, ReleasedSdxlFile) {
  const SchedulerConfig c = read_scheduler_config(Json::parse(kSdxlBase), "scheduler_config.json");
  EXPECT_EQ(c.schedule.kind, ScheduleKind::scaled_linear);
  EXPECT_EQ(c.sampling.sampler, SamplerKind::euler);
  EXPECT_EQ(c.sampling.spacing, Spacing::leading);
  EXPECT_EQ(c.sampling.steps_offset, 1);
  EXPECT_EQ(c.prediction, Prediction::epsilon);
  EXPECT_EQ(scheduler_class_of(c), "EulerDiscreteScheduler");
  const Json again = scheduler_json(ScheduleConfig{}, Prediction::epsilon, SamplerKind::euler);  // our default for SDXL is the same
  EXPECT_EQ(again, scheduler_json(c));
}

bool same(const SchedulerConfig& a, const SchedulerConfig& b) { return scheduler_json(a) == scheduler_json(b) && a.prediction == b.prediction; }

TEST(SchedulerConfig, WhatIsSavedIsReadAgain) {
  testing::ScratchFolder scratch("scheduler");
  std::vector<SchedulerConfig> all;
  for (int sampler = 0; sampler < 8; ++sampler)
    for (const Prediction p : {Prediction::epsilon, Prediction::v_prediction})
      for (const ScheduleKind kind : {ScheduleKind::linear, ScheduleKind::scaled_linear, ScheduleKind::cosine, ScheduleKind::edm})
        all.push_back({.schedule = {.kind = kind, .sigma_data = 0.5}, .prediction = p, .sampling = {.sampler = static_cast<SamplerKind>(sampler)}});
  all.push_back({.schedule = {.zero_terminal_snr = true}, .prediction = Prediction::v_prediction, .sampling = {.sampler = SamplerKind::euler}});
  all.push_back({.schedule = {}, .sampling = {.sampler = SamplerKind::dpmpp_2m, .spacing = Spacing::karras, .range = Spacing::trailing, .end_clean = false}});
  all.push_back({.schedule = {}, .sampling = {.sampler = SamplerKind::euler, .spacing = Spacing::exponential, .range = Spacing::leading, .steps_offset = 1, .sigma_max = 9.0}});
  all.push_back({.schedule = {}, .sampling = {.sampler = SamplerKind::ddpm, .clip_sample = 2.0, .large_variance = true}});
  all.push_back({.schedule = {.kind = ScheduleKind::flow, .shift = 3.0}, .prediction = Prediction::flow, .sampling = {.sampler = SamplerKind::flow_euler}});
  all.push_back({.schedule = {.kind = ScheduleKind::flow, .dynamic_shift = true, .shift_kind = ShiftKind::linear, .shift_terminal = 0.7155}, .prediction = Prediction::flow, .sampling = {.sampler = SamplerKind::lcm}});
  for (const SchedulerConfig& c : all) {
    save_scheduler_config(scratch.path(), c);
    const SchedulerConfig again = load_scheduler_config(scratch.path());
    EXPECT_TRUE(same(c, again)) << scheduler_json(c).dump(1) << scheduler_json(again).dump(1);
    const Schedule a(c.schedule), b(again.schedule);
    for (const double t : {0.0, 10.0, 999.0}) EXPECT_EQ(a.alpha(t), b.alpha(t));
    if (c.schedule.kind == ScheduleKind::flow) continue;
    SamplingConfig mine = c.sampling, read = again.sampling;
    mine.steps = read.steps = 8;
    const SamplingPlan p = make_plan(a, mine), q = make_plan(b, read);
    EXPECT_EQ(p.timesteps, q.timesteps) << scheduler_json(c).dump(1);
    EXPECT_EQ(p.sigmas, q.sigmas);
    EXPECT_EQ(p.unit, q.unit);
  }
}

TEST(SchedulerConfig, WhatWeDoNotComputeIsRefusedByName) {
  const auto says = [](const char* key, const Json& value, const char* kind = "EulerDiscreteScheduler") {
    Json j = {{"_class_name", kind}};
    j[key] = value;
    return message_of<ConfigError>([&] { read_scheduler_config(j, "here.json"); });
  };
  EXPECT_THAT(says("use_beta_sigmas", true), AllOf(HasSubstr("here.json"), HasSubstr("use_beta_sigmas"), HasSubstr("true")));
  EXPECT_THAT(says("timestep_type", "continuous"), HasSubstr("timestep_type"));
  EXPECT_THAT(says("trained_betas", {0.1, 0.2}), HasSubstr("trained_betas"));
  EXPECT_THAT(says("beta_schedule", "exp"), HasSubstr("beta_schedule"));
  EXPECT_THAT(says("timestep_spacing", "middle"), HasSubstr("timestep_spacing"));
  EXPECT_THAT(says("num_train_timesteps", "many"), HasSubstr("an integer"));
  EXPECT_THAT(says("prediction_type", "noise"), HasSubstr("epsilon"));
  EXPECT_THAT(says("solver_order", 3, "DPMSolverMultistepScheduler"), HasSubstr("solver_order"));
  EXPECT_THAT(says("algorithm_type", "sde-dpmsolver++", "DPMSolverMultistepScheduler"), HasSubstr("algorithm_type"));
  EXPECT_THAT(says("lambda_min_clipped", -5.1, "DPMSolverMultistepScheduler"), HasSubstr("lambda_min_clipped"));
  EXPECT_THAT(says("variance_type", "learned_range", "DDPMScheduler"), HasSubstr("variance_type"));
  EXPECT_THAT(says("thresholding", true, "DDIMScheduler"), HasSubstr("thresholding"));
  EXPECT_THAT(says("invert_sigmas", true, "FlowMatchEulerDiscreteScheduler"), HasSubstr("invert_sigmas"));
  EXPECT_THAT(says("x", 1, "PNDMScheduler"), AllOf(HasSubstr("PNDMScheduler"), HasSubstr("DDIMScheduler")));
  EXPECT_EQ(says("use_beta_sigmas", false), "(no error)");
  EXPECT_EQ(says("skip_prk_steps", true), "(no error)");  // not a key of this class
  EXPECT_THAT(message_of<ConfigError>([] { read_scheduler_config(Json::array(), "here.json"); }), HasSubstr("_class_name"));
}

TEST(SchedulerConfig, WhatDiffusersDoesNotHaveIsNotWritten) {
  const auto says = [](const SchedulerConfig& c) { return message_of<ConfigError>([&] { scheduler_json(c); }); };
  EXPECT_THAT(says({.schedule = {.kind = ScheduleKind::flow}, .prediction = Prediction::flow, .sampling = {.sampler = SamplerKind::ddpm}}), HasSubstr("flow_euler"));
  EXPECT_THAT(says({.schedule = {.zero_terminal_snr = true}, .prediction = Prediction::v_prediction, .sampling = {.sampler = SamplerKind::heun}}), HasSubstr("zero_terminal_snr"));
  EXPECT_THAT(says({.schedule = {}, .sampling = {.sampler = SamplerKind::ddim, .spacing = Spacing::karras}}), HasSubstr("karras"));
  EXPECT_THAT(says({.schedule = {}, .sampling = {.sampler = SamplerKind::euler, .clip_sample = 1.0}}), HasSubstr("clip_sample"));
  EXPECT_THAT(says({.schedule = {}, .prediction = Prediction::flow}), HasSubstr("flow"));
}

}  // namespace
}  // namespace fewstep::diffusion
