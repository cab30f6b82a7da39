// `fewstep export --format lora-*` and `sample lora=` of a distilled student, as a user meets them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "src/base/files.h"
#include "src/base/hash.h"
#include "src/base/json.h"
#include "src/diffusion/scheduler_config.h"
#include "src/diffusion/student_schedule.h"
#include "src/io/safetensors.h"
#include "src/models/model.h"
#include "src/models/unet2d.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/support/process.h"
#include "tests/support/scratch.h"
#include "trainers/tuning.h"

namespace fewstep {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::Finished;

const fs::path kBase = FEWSTEP_SOURCE_DIR "/tests/golden/sdxl_pipeline";

class ExportLoraCli : public ::testing::Test {
 protected:
  const testing::ScratchFolder scratch{"export-lora-cli"};
  const fs::path student = scratch / "student";

  // A 4-step student of the golden pipeline, as the trainers of distillation save it.
  void SetUp() override {
    fs::copy(kBase, student, fs::copy_options::recursive);
    const NoGrad no_grad;
    const std::unique_ptr<nn::Module> unet = models::load_model(student / "unet");
    const Tuning tuning(*unet, {.rank = 2, .alpha = 5, .targets = {"to_q", "to_v", "to_out.0", "conv1", "ff.net.0.proj", "time_emb_proj"}}, "student", 1);
    int64_t id = 0;
    for (const NamedTensor& t : tuning.parameters()) {
      at::Generator generator = generator_for(2, Stream::init, 0, id++);
      t.tensor.normal_(0, 0.2, generator);
    }
    const Json config = read_json(student / "unet/config.json");
    fs::remove_all(student / "unet");
    models::save_model(student / "unet", tuning.merged_state(), config);
    tuning.save_adapter(student / "adapter", kBase.string(), "");
    const diffusion::SchedulerConfig base = diffusion::load_scheduler_config(kBase / "scheduler");
    const diffusion::StudentSchedule schedule({.steps = 4}, diffusion::Schedule(base.schedule));
    diffusion::save_scheduler_config(student / "scheduler", schedule.scheduler(base.prediction));
    Json index = read_json(student / "model_index.json");
    index["scheduler"] = {"diffusers", "LCMScheduler"};
    write_json(student / "model_index.json", index);
    std::vector<double> sigmas;
    for (int64_t k = 0; k < 4; ++k) sigmas.push_back(schedule.sigma(k));
    write_json(student / "distillation.json", {{"method", "dmd2"}, {"steps", 4}, {"timesteps", {999, 749, 499, 249}}, {"sigmas", sigmas}, {"sampler", "lcm"}, {"cfg_scale", 1},
                                               {"teacher", kBase.string()}, {"teacher_sha256", "abc"}, {"training", {{"iterations", 600}}}});
  }
  Finished run(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), FEWSTEP_BINARY);
    return testing::Child(arguments, scratch.path(), {{"FEWSTEP_CACHE", scratch / "cache"}}).wait();
  }
  Finished export_to(const std::string& format, const fs::path& out, std::vector<std::string> more = {}) const {
    std::vector<std::string> arguments = {"export", student.string(), "--format", format, "--out", out.string()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments);
  }
  Tensor latents(const std::string& model, std::vector<std::string> more) const {
    std::vector<std::string> arguments = {"sample", model, "--prompt", "a dark long dress", "--steps", "4", "--out", (scratch / "out").string(), "--save-latents", (scratch / "l.safetensors").string()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Finished done = run(arguments);
    EXPECT_EQ(done.code, 0) << done.output;
    const Tensor out = done.code == 0 ? io::Safetensors(scratch / "l.safetensors").get("latents").clone() : at::zeros({1});
    last_ = done.output;
    return out;
  }
  static double apart(const Tensor& a, const Tensor& b) { return a.sizes() == b.sizes() ? (a - b).abs().max().item<double>() / b.abs().max().item<double>() : 9; }
  mutable std::string last_;
};

TEST_F(ExportLoraCli, SampledAlikeFromEveryForm) {
  const Finished peft = export_to("lora-peft", scratch / "peft");
  ASSERT_EQ(peft.code, 0) << peft.output;
  EXPECT_THAT(peft.output, HasSubstr("4 steps, its scheduler gives the trained sigmas"));
  ASSERT_EQ(export_to("lora-kohya", scratch / "kohya.safetensors").code, 0);
  ASSERT_EQ(export_to("lora-kohya", scratch / "sgm.safetensors", {"--kohya-names", "sgm"}).code, 0);
  ASSERT_EQ(export_to("diffusers", scratch / "merged").code, 0);
  EXPECT_EQ(read_text(scratch / "merged/scheduler/scheduler_config.json"), read_text(student / "scheduler/scheduler_config.json"));
  EXPECT_EQ(read_json(scratch / "merged/model_index.json").at("scheduler"), Json({"diffusers", "LCMScheduler"}));
  EXPECT_TRUE(fs::exists(scratch / "merged/distillation.json"));
  const Tensor want = latents((scratch / "merged").string(), {}), base = latents(kBase.string(), {});
  EXPECT_GT(apart(base, want), 0.1);
  EXPECT_LT(apart(latents(kBase.string(), {"lora=" + (scratch / "peft").string()}), want), 1e-5);
  EXPECT_THAT(last_, AllOf(HasSubstr("LoRA of rank 2 on "), HasSubstr("strength 1; sampled with its own scheduler"), Not(HasSubstr("trained at"))));
  EXPECT_LT(apart(latents(kBase.string(), {"lora=" + student.string()}), want), 1e-5) << "the run itself";
  for (const char* file : {"kohya.safetensors", "sgm.safetensors"}) {
    EXPECT_LT(apart(latents(kBase.string(), {"lora=" + (scratch / file).string(), "sampler=lcm", "timesteps=[999,749,499,249]"}), want), 1e-5) << file;
    EXPECT_THAT(last_, Not(HasSubstr("trained at"))) << file;
  }
  latents(kBase.string(), {"lora=" + (scratch / "kohya.safetensors").string()});
  EXPECT_THAT(last_, HasSubstr("its student was trained at timesteps [999, 749, 499, 249] for sampler lcm"));
}

TEST_F(ExportLoraCli, SaysWhatItIs) {
  write_json(scratch / "results.json", Json::parse(R"({"name": "dmd2_eval", "protocol": "N = 500", "provenance": {},
    "rows": [{"label": "student | 4", "metrics": {"FD[judge@4fbb17ad]": {"value": 4.05, "ci95": 0.11, "n": 500}}, "nfe": 4, "seeds": [1]}]})"));
  ASSERT_EQ(export_to("lora-peft", scratch / "peft", {"--results", (scratch / "results.json").string(), "--metadata", "modelspec.license=MIT", "--dtype", "bfloat16"}).code, 0);
  const std::string card = read_text(scratch / "peft/README.md");
  EXPECT_THAT(card, AllOf(HasSubstr("library_name: diffusers"), HasSubstr("| method | dmd2 |"), HasSubstr("| steps | 4 |"), HasSubstr("| timesteps | 999, 749, 499, 249 |"),
                          HasSubstr("| sampler | lcm (LCMScheduler) |"), HasSubstr("| guidance | 1 ("), HasSubstr("| training: iterations | 600 |"), HasSubstr("bfloat16, peft names")));
  EXPECT_THAT(card, AllOf(HasSubstr("| student \\| 4 | FD[judge@4fbb17ad] | 4.05"), HasSubstr("| network calls an image | 4 |"), HasSubstr("guidance_scale=1.0"),
                          HasSubstr("LCMScheduler.from_pretrained(\"FOLDER\", subfolder=\"scheduler\")"), HasSubstr("trained with alpha 5")));
  for (const char* file : {"pytorch_lora_weights.safetensors", "scheduler/scheduler_config.json"})
    EXPECT_THAT(card, HasSubstr(std::string(file) + " | " + sha256_file((scratch / "peft" / file).string())));
  const io::Safetensors peft(scratch / "peft/pytorch_lora_weights.safetensors");
  const auto m = peft.metadata();
  EXPECT_EQ(m.at("distill.method"), "dmd2");
  EXPECT_EQ(m.at("distill.timesteps"), "[999.0,749.0,499.0,249.0]");
  EXPECT_EQ(m.at("distill.cfg"), "1.0");
  EXPECT_EQ(m.at("modelspec.license"), "MIT");
  EXPECT_EQ(m.at("format"), "pt");
  const Json adapter = Json::parse(m.at("lora_adapter_metadata"));
  EXPECT_EQ(adapter.at("unet.r"), 2);
  EXPECT_EQ(adapter.at("unet.lora_alpha"), 2);
  for (const std::string& name : peft.names()) {
    EXPECT_THAT(name, AllOf(HasSubstr("unet."), Not(HasSubstr(".alpha"))));
    EXPECT_EQ(peft.get(name).scalar_type(), at::kBFloat16);
  }
  ASSERT_EQ(export_to("lora-kohya", scratch / "kohya").code, 0);
  const io::Safetensors kohya(scratch / "kohya/pytorch_lora_weights.safetensors");
  EXPECT_FALSE(kohya.metadata().contains("lora_adapter_metadata")) << "diffusers refuses it beside alphas";
  EXPECT_EQ(kohya.metadata().at("ss_network_alpha"), "5");
  EXPECT_EQ(kohya.metadata().at("ss_network_dim"), "2");
  EXPECT_EQ("0x" + kohya.metadata().at("sshs_model_hash"), kohya.metadata().at("modelspec.hash_sha256"));
  int64_t alphas = 0, downs = 0;
  for (const std::string& name : kohya.names()) alphas += name.ends_with(".alpha"), downs += name.ends_with(".lora_down.weight");
  EXPECT_GT(alphas, 10);
  EXPECT_EQ(alphas, downs);
  for (const char* format : {"lora-peft", "lora-kohya"}) {
    ASSERT_EQ(export_to(format, scratch / "a.safetensors").code, 0);
    ASSERT_EQ(export_to(format, scratch / "b.safetensors").code, 0);
    EXPECT_EQ(read_text(scratch / "a.safetensors"), read_text(scratch / "b.safetensors")) << "equal models make equal files";
  }
}

TEST_F(ExportLoraCli, RefusesWhatWouldNotWork) {
  const auto expect = [&](const Finished& f, int code, const std::vector<std::string>& texts) {
    EXPECT_EQ(f.code, code) << f.output;
    for (const std::string& text : texts) EXPECT_THAT(f.output, HasSubstr(text));
  };
  const fs::path file = scratch / "x.safetensors";
  expect(export_to("lora-kohya", file, {"--kohya-names", "ldm"}), 2, {"unknown --kohya-names: 'ldm' is not one of diffusers, sgm"});
  expect(export_to("lora-peft", file, {"--kohya-names", "sgm"}), 2, {"--kohya-names: is for --format lora-kohya, not lora-peft"});
  expect(export_to("single-file", file, {"--results", "r.json"}), 2, {"--results: is for the model card"});
  expect(export_to("lora-peft", file, {"--results", (student / "model_index.json").string()}), 2, {"x.safetensors is one file"});
  expect(export_to("lora-peft", scratch / "x", {"--results", "none.json"}), 3, {"--results none.json: no such file"});
  expect(export_to("lora-peft", file, {"--variant", "fp16"}), 2, {"--variant: means nothing to --format lora-peft"});
  expect(export_to("lora-peft", student), 2, {"a folder with files in it"});
  // Another scheduler, other steps, other betas: all formats refuse.
  const std::string good = read_text(student / "scheduler/scheduler_config.json");
  const auto with = [&](const char* key, const Json& value) {
    Json j = Json::parse(good);
    j[key] = value;
    write_json(student / "scheduler/scheduler_config.json", j);
  };
  write_text_atomic(student / "scheduler/scheduler_config.json", read_text(kBase / "scheduler/scheduler_config.json"));
  for (const char* format : {"lora-peft", "lora-kohya", "diffusers", "single-file"})
    expect(export_to(format, std::string(format) == "diffusers" ? scratch / "y" : file), 2, {"scheduler_config.json: it samples with euler", "trained as stochastic: take lcm"});
  with("original_inference_steps", 50);
  expect(export_to("lora-peft", file), 2, {"its sigmas are", "the student was trained at", "(timesteps 999, 749, 499, 249)"});
  with("beta_end", 0.02);
  expect(export_to("lora-peft", file), 2, {"at timestep 999 its schedule has sigma", "the student was trained there at", "put the student's own scheduler back"});
  write_text_atomic(student / "scheduler/scheduler_config.json", good);
  Json account = read_json(student / "distillation.json");
  account["sigmas"] = {1, 0.5};
  write_json(student / "distillation.json", account);
  expect(export_to("lora-peft", file), 3, {"distillation.json: 4 timesteps and 2 sigmas"});
  fs::remove(student / "distillation.json");
  ASSERT_EQ(export_to("lora-peft", scratch / "plain.safetensors").code, 0) << "an adapter that is no student's";
  EXPECT_FALSE(io::Safetensors(scratch / "plain.safetensors").metadata().contains("distill.method"));
  fs::remove_all(student / "adapter");
  expect(export_to("lora-peft", file), 2, {"the model has no adapter", "--format diffusers", "trainer.lora.rank"});
  EXPECT_FALSE(fs::exists(file));
  for (const auto& entry : fs::directory_iterator(scratch.path())) EXPECT_FALSE(entry.path().filename().string().starts_with(".export-")) << "left behind";
}

}  // namespace
}  // namespace fewstep
