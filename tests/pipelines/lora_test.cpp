// LoRA files laid over a pipeline's network: put on, taken off, their scheduler, and warnings about other ways of sampling.
#include "src/pipelines/lora.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/json.h"
#include "src/config/config.h"
#include "src/diffusion/scheduler_config.h"
#include "src/diffusion/student_schedule.h"
#include "src/io/safetensors.h"
#include "src/models/lora_files.h"
#include "src/nn/lora.h"
#include "src/pipelines/diffusion_pipeline.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/support/message_of.h"
#include "tests/support/scratch.h"

namespace fewstep::pipelines {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

const fs::path kBase = FEWSTEP_SOURCE_DIR "/tests/golden/sdxl_pipeline";

class PipelineLora : public ::testing::Test {
 protected:
  PipelineLora() {
    const NoGrad no_grad;
    const DiffusionModel model = load_diffusion_model(kBase);
    nn::add_adapter(*model.unet, {.name = "student", .rank = 2, .alpha = 3, .targets = {"to_q", "to_v", "to_out.0", "conv1", "proj_in"}}, 1);
    int64_t id = 0;
    for (const NamedTensor& t : model.unet->adapter("student")) {
      at::Generator generator = generator_for(2, Stream::init, 0, id++);
      t.tensor.normal_(0, 0.3, generator);
      models::LoraLayer& layer = layers_[t.name.substr(0, t.name.size() - 14)];
      layer.alpha = 3;
      (t.name.ends_with(".lora_A.weight") ? layer.a : layer.b) = t.tensor.detach();
    }
    std::vector<std::string> names;
    for (const NamedTensor& t : model.unet->state()) names.push_back(t.name);
    names_ = std::make_unique<models::LoraNames>("unet", models::layers_with_weights(names), "test");
    make_directories(folder / "lora/scheduler");
    const diffusion::StudentSchedule student({.steps = 4}, model.schedule);
    diffusion::save_scheduler_config(folder / "lora/scheduler", student.scheduler(model.prediction));
    std::vector<double> sigmas;
    for (int64_t k = 0; k < 4; ++k) sigmas.push_back(student.sigma(k));
    trained_ = {{"distill.timesteps", "[999, 749, 499, 249]"}, {"distill.sigmas", Json(sigmas).dump()}, {"distill.sampler", "lcm"}, {"distill.cfg", "1"}};
    write("lora/pytorch_lora_weights.safetensors", models::LoraForm::peft);
    write("sgm.safetensors", models::LoraForm::kohya_sgm);
  }
  void write(const std::string& name, models::LoraForm form) { io::write_safetensors(folder / name, models::lora_tensors(layers_, *names_, form), trained_); }
  static Tensor latents(Pipeline& pipeline, std::vector<std::string> lines) {
    lines.push_back("sampling_steps=4");
    GenerateOptions options;
    config::read_overrides(lines, config::describe_root<GenerateOptions>(), &options);
    return pipeline.generate({"a dark long dress", "two small birds"}, 3, std::vector<int64_t>{0, 7}, options).latents;
  }
  static double apart(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>() / b.abs().max().item<double>(); }
  std::string lora() const { return "lora=" + (folder / "lora").string(); }

  const testing::ScratchFolder folder{"pipeline-lora"};
  models::LoraLayers layers_;
  std::unique_ptr<models::LoraNames> names_;
  std::map<std::string, std::string> trained_;
};

TEST_F(PipelineLora, PutOnAndTakenOff) {
  DiffusionPipeline pipeline(kBase, at::kCPU);
  const Tensor plain = latents(pipeline, {});
  const std::string sgm = "lora=" + (folder / "sgm.safetensors").string();
  const Tensor with = latents(pipeline, {sgm});
  EXPECT_GT(apart(with, plain), 0.05);
  EXPECT_TRUE(latents(pipeline, {sgm, "lora_scale=0"}).equal(plain));
  EXPECT_GT(apart(latents(pipeline, {sgm, "lora_scale=0.5"}), with), 0.01);
  EXPECT_TRUE(latents(pipeline, {sgm}).equal(with)) << "not on top of the last one";
  EXPECT_TRUE(latents(pipeline, {}).equal(plain));
  // Adapters beside the weights instead of merged ones: the same function.
  DiffusionPipeline beside(kBase, at::kCPU);
  nn::Module& unet = *beside.model().unet;
  nn::add_adapter(unet, {.name = "x", .rank = 2, .alpha = 3, .targets = {"to_q", "to_v", "to_out.0", "conv1", "proj_in"}}, 1);
  TensorMap tensors;
  for (const auto& [layer, l] : layers_) tensors[layer + ".lora_A.weight"] = l.a, tensors[layer + ".lora_B.weight"] = l.b;
  nn::load_adapter(unet, "x", tensors, "test");
  const nn::AdapterScope scope({{"x"}});
  EXPECT_LT(apart(latents(beside, {}), with), 1e-4);
}

TEST_F(PipelineLora, ItsSchedulerIsTheModels) {
  DiffusionPipeline pipeline(kBase, at::kCPU);
  const Tensor own = latents(pipeline, {lora()});
  EXPECT_EQ(pipeline.model().sampling.sampler, diffusion::SamplerKind::lcm);
  // A file alone is sampled with the base's scheduler, unless told.
  const std::string sgm = "lora=" + (folder / "sgm.safetensors").string();
  EXPECT_GT(apart(latents(pipeline, {sgm}), own), 0.01);
  EXPECT_LT(apart(latents(pipeline, {sgm, "sampler=lcm", "timesteps=[999,749,499,249]"}), own), 1e-5);
  latents(pipeline, {});
  EXPECT_EQ(pipeline.model().sampling.sampler, diffusion::SamplerKind::euler);
}

TEST_F(PipelineLora, SaysHowItWasTrained) {
  DiffusionModel model = load_diffusion_model(kBase);
  const diffusion::SamplingConfig euler = model.sampling;
  const diffusion::Schedule schedule = model.schedule;
  const MergedLora lora(model, (folder / "lora").string(), 1);
  EXPECT_EQ(lora.layers(), static_cast<int64_t>(layers_.size()));
  EXPECT_EQ(lora.trained().steps, 4);
  const auto says = [&](diffusion::SamplingConfig sampling, const diffusion::Schedule& s, int64_t steps, double guidance) {
    sampling.steps = steps;
    return lora.differs(diffusion::make_plan(s, sampling), sampling.sampler, guidance);
  };
  EXPECT_EQ(says(model.sampling, model.schedule, 4, 1), "");
  EXPECT_THAT(says(model.sampling, model.schedule, 2, 1), AllOf(HasSubstr("trained at timesteps [999, 749, 499, 249] for sampler lcm"), HasSubstr("timesteps=[999,749,499,249]")));
  EXPECT_THAT(says(model.sampling, model.schedule, 4, 5), HasSubstr("trained for guidance 1, and is sampled with 5"));
  EXPECT_THAT(says(euler, schedule, 4, 1), HasSubstr("with euler: sampler=lcm"));
}

TEST_F(PipelineLora, Errors) {
  DiffusionPipeline pipeline(kBase, at::kCPU);
  write_json(folder / "lora/scheduler/scheduler_config.json", [&] {
    Json j = read_json(folder / "lora/scheduler/scheduler_config.json");
    j["prediction_type"] = "v_prediction";
    return j;
  }());
  EXPECT_THAT(message_of<ConfigError>([&] { latents(pipeline, {lora()}); }), HasSubstr("its scheduler predicts 'v_prediction', the network 'epsilon'"));
  EXPECT_THAT(message_of<ConfigError>([&] { latents(pipeline, {"lora_scale=0.5"}); }), HasSubstr("is the strength of lora: give that, too"));
  EXPECT_THAT(message_of<DataError>([&] { latents(pipeline, {"lora=" + kBase.string()}); }), HasSubstr("a model without an adapter"));
  io::write_safetensors(folder / "other.safetensors", {{"unet.blocks.0.to_q.lora_A.weight", at::ones({1, 2})}});
  EXPECT_THAT(message_of<DataError>([&] { latents(pipeline, {"lora=" + (folder / "other.safetensors").string()}); }),
              HasSubstr("1 of 1 keys belong to no layer of this unet, the first: 'unet.blocks.0.to_q.lora_A.weight' (0 layers matched)"));
}

}  // namespace
}  // namespace fewstep::pipelines
