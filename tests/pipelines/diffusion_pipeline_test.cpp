// Whole diffusion pipelines: samples do not depend on the batch, handover and image-to-image by noise level, saving,
// errors.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "src/base/json.h"
#include "src/config/config.h"
#include "src/io/image.h"
#include "src/io/safetensors.h"
#include "src/pipelines/conditioner_class.h"
#include "src/pipelines/conditioner_text.h"
#include "src/pipelines/diffusion_pipeline.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/support/message_of.h"
#include "tests/support/scratch.h"

namespace fewstep::pipelines {
namespace {

namespace fs = std::filesystem;
using diffusion::Prediction;
using diffusion::ScheduleKind;
using ::testing::HasSubstr;

const fs::path kSdxl = FEWSTEP_SOURCE_DIR "/tests/golden/sdxl_pipeline",
               kSdxlRefiner = FEWSTEP_SOURCE_DIR "/tests/golden/sdxl_refiner";

struct TinyModel {
  ScheduleKind schedule = ScheduleKind::scaled_linear;
  Prediction prediction = Prediction::epsilon;
  diffusion::SamplerKind sampler = diffusion::SamplerKind::ddim;
  double scale = 1.5;  // of the latents
  bool text = false;
  bool zero = false;  // the network answers 0, as a fresh one does
};

void save_tiny(const fs::path& folder, const TinyModel& m) {
  std::unique_ptr<Conditioner> conditioner;
  if (m.text) {
    TextConditionerConfig config;
    config.vocab_size = 270, config.length = 8, config.dim = 8, config.layers = 1, config.heads = 2;
    conditioner = config.build({.class_names = {}, .train_tokenizer = [](int64_t size) {
                                  return text::BpeTokenizer::train({"a dress", "a bag"}, size);
                                }});
  } else {
    ClassConditionerConfig config;
    config.dim = 8;
    conditioner = config.build({.class_names = {"dress", "bag"}, .train_tokenizer = {}});
  }
  const auto latents = latent_space_kinds()[1].make();  // pixel_unshuffle
  config::read_string(
      fmt::format("{{normalise: false, scale: {}}}", m.scale), "<test>",
      [](config::Visitor& v, void* p) { static_cast<LatentSpaceConfig*>(p)->describe(v); }, latents.get());
  const auto space = latents->build(1, {});
  models::UNet2DConfig unet;
  unet.in_channels = unet.out_channels = 4, unet.sample_size = 8, unet.block_out_channels = {4, 8},
  unet.layers_per_block = {1};
  unet.down_block_types = {"DownBlock2D", "CrossAttnDownBlock2D"},
  unet.up_block_types = {"CrossAttnUpBlock2D", "UpBlock2D"};
  unet.attention_head_dim = {2}, unet.norm_num_groups = 2, unet.addition_time_embed_dim = 4;
  fit_conditioning(unet, *conditioner);
  models::UNet2DConditionModel network(unet);
  network.initialise(1);
  TensorMap state;
  for (const NamedTensor& p : network.state()) {
    Tensor value = p.tensor.detach().clone();
    if (!m.zero && value.abs().sum().item<double>() == 0 && value.dim() > 1) {
      auto generator = generator_for(4, Stream::init, 0, static_cast<int64_t>(state.size()));
      nn::init_normal(value, 0.1, generator);
    }
    state[p.name] = value;
  }
  diffusion::ScheduleConfig schedule;
  schedule.kind = m.schedule;
  diffusion::SamplingConfig sampling;
  sampling.sampler = m.sampler;
  save_diffusion_model(folder,
                       {unet, state, *conditioner, *space, diffusion::Schedule(schedule), m.prediction, sampling});
}

GenerateOptions with(const std::vector<std::string>& lines) {
  GenerateOptions options;
  config::read_overrides(lines, config::describe_root<GenerateOptions>(), &options);
  return options;
}

double largest(const Tensor& t) { return t.abs().max().item<double>(); }

class TinyPipeline : public ::testing::Test {
 protected:
  fs::path make(const std::string& name, const TinyModel& model = {}) {
    save_tiny(folder / name, model);
    return folder / name;
  }
  const testing::ScratchFolder folder{"pipeline"};
};

TEST_F(TinyPipeline, SamplesDoNotDependOnTheBatch) {
  const auto pipeline = load(make("model"), at::kCPU);
  const std::vector<std::string> prompts = {"a dress", "a bag", "the dress", "a long dress", "bag"};
  const std::vector<int64_t> ids = {5, 0, 9, 2, 7};
  for (const std::string sampler : {"ddim", "euler_ancestral", "dpmpp_2m"}) {
    GenerateOptions options = with({"sampling_steps=4", "guidance=2", "sampler=" + sampler});
    const Generated all = pipeline->generate(prompts, 3, ids, options);
    EXPECT_EQ(all.images.sizes(), at::IntArrayRef({5, 1, 16, 16}));
    EXPECT_EQ(all.steps, 4);
    EXPECT_EQ(all.nfe, 8);
    options.batch_size = 2;
    const double limit = 1e-5 * largest(all.latents);
    EXPECT_LT(largest(pipeline->generate(prompts, 3, ids, options).latents - all.latents), limit) << sampler;
    for (size_t i : {3u, 1u}) {
      const Generated one = pipeline->generate({prompts[i]}, 3, std::vector<int64_t>{ids[i]}, options);
      EXPECT_LT(largest(one.latents[0] - all.latents[static_cast<int64_t>(i)]), limit) << sampler;
    }
    EXPECT_GT(largest(pipeline->generate(prompts, 4, ids, options).latents - all.latents), 0.1);
  }
}

TEST_F(TinyPipeline, GuidanceIntervalAndScope) {
  const auto pipeline = load(make("model"), at::kCPU);
  const auto run = [&](const std::vector<std::string>& lines) {
    return pipeline->generate({"a dress"}, 1, 0, with(lines));
  };
  const Generated plain = run({"sampling_steps=10"}), full = run({"sampling_steps=10", "guidance=3"});
  EXPECT_EQ(plain.nfe, 10);
  const Generated half =
      run({"sampling_steps=10", "guidance=3", "guidance_from=0.25", "guidance_to=0.65"});  // t = 299 ... 599
  EXPECT_EQ(half.nfe, 14);
  const Generated none = run({"sampling_steps=10", "guidance=3", "guidance_from=0.9995", "guidance_to=1"});
  EXPECT_EQ(none.nfe, 10);
  EXPECT_LT(largest(none.latents - plain.latents), 1e-5);
  EXPECT_GT(largest(full.latents - half.latents), 1e-4);
  EXPECT_GT(largest(run({"sampling_steps=10", "guidance=3", "unconditional=all"}).latents - full.latents), 1e-5);
}

TEST_F(TinyPipeline, SizesAndNumbers) {
  const auto pipeline = load(make("model"), at::kCPU);
  const auto run = [&](const std::vector<std::string>& lines) {
    return pipeline->generate({"a dress"}, 1, 0, with(lines));
  };
  EXPECT_EQ(run({"sampling_steps=2", "height=24", "width=12"}).images.sizes(), at::IntArrayRef({1, 1, 24, 12}));
  const Generated plain = run({"sampling_steps=2"});
  EXPECT_GT(largest(run({"sampling_steps=2", "original_size=[99, 3]"}).latents - plain.latents), 1e-5);
  EXPECT_GT(largest(run({"sampling_steps=2", "crop=[9, 3]"}).latents - plain.latents), 1e-5);
  EXPECT_LT(largest(run({"sampling_steps=2", "original_size=[16, 16]", "crop=[0, 0]"}).latents - plain.latents), 1e-6);
}

TEST_F(TinyPipeline, TextPromptsAndNegativePrompts) {
  const auto pipeline = load(make("model", {.text = true}), at::kCPU);
  const auto run = [&](const std::string& prompt, const std::vector<std::string>& lines) {
    return pipeline->generate({prompt}, 1, 0, with(lines)).latents;
  };
  const Tensor dress = run("a dress", {"sampling_steps=3", "guidance=3"});
  EXPECT_GT(largest(run("a bag", {"sampling_steps=3", "guidance=3"}) - dress), 1e-5);
  EXPECT_GT(largest(run("a dress", {"sampling_steps=3", "guidance=3", "negative_prompt=a bag"}) - dress), 1e-5);
  EXPECT_LT(largest(run("a dress",
                        {"sampling_steps=3", "guidance=3", "negative_prompt=a dress"}) -  // u + s (c - u) with c = u
                    run("a dress", {"sampling_steps=3"})),
            1e-4);
}

// A network that answers 0 leaves x / alpha as it is, whatever the schedule and the steps.
TEST_F(TinyPipeline, HandoverKeepsTheNoiseLevelAcrossSchedules) {
  const auto base = load(make("base", {.sampler = diffusion::SamplerKind::euler, .zero = true}), at::kCPU);
  const auto run = [&](std::vector<std::string> more) {
    more.insert(more.end(), {"sampling_steps=20", "handover=0.6"});
    return base->generate({"a dress", "a bag"}, 1, 0, with(more));
  };
  const Generated whole = run({});
  const std::vector<TinyModel> refiners = {{.zero = true},
                                           {.schedule = ScheduleKind::linear, .zero = true},
                                           {.schedule = ScheduleKind::flow,
                                            .prediction = Prediction::flow,
                                            .sampler = diffusion::SamplerKind::flow_euler,
                                            .zero = true}};
  const DiffusionPipeline own(folder / "base", at::kCPU);
  for (size_t i = 0; i < refiners.size(); ++i) {
    const Generated both = run({"refiner=" + make("refiner" + std::to_string(i), refiners[i]).string()});
    // Flow with v = 0 keeps x instead, which entered as alpha x / alpha_base at the level of t = 399: alpha = 1 / (1 +
    // ratio).
    const double kept =
        refiners[i].schedule == ScheduleKind::flow ? 1 / (1 + own.model().schedule.noise_ratio(399.0)) : 1;
    EXPECT_LT(largest(both.latents - kept * whole.latents), 1e-3 * largest(whole.latents)) << i;
    EXPECT_GT(both.steps, 12);
  }
}

// A model that refines its own latents gives what it gives alone, wherever the steps lie.
TEST(SdxlPipeline, HandingOverToItselfChangesNothing) {
  const auto pipeline = load(kSdxl, at::kCPU);
  for (const std::string spacing : {"leading", "trailing", "linspace", "karras", "exponential"})
    for (const std::string handover : {"0.8", "0.33"}) {
      std::vector<std::string> lines = {"sampling_steps=12", "guidance=3", "spacing=" + spacing};
      const Generated alone = pipeline->generate({"a dress"}, 1, 0, with(lines));
      lines.insert(lines.end(), {"handover=" + handover, "refiner=" + kSdxl.string()});
      const Generated both = pipeline->generate({"a dress"}, 1, 0, with(lines));
      EXPECT_EQ(both.steps, alone.steps) << spacing;
      EXPECT_LT(largest(both.latents - alone.latents), 2e-3 * largest(alone.latents)) << spacing << " " << handover;
    }
}

TEST_F(TinyPipeline, InitImageIsNoisedByStrength) {
  const fs::path model = make("model", {.sampler = diffusion::SamplerKind::euler, .zero = true});
  const DiffusionPipeline pipeline(model, at::kCPU);
  const Tensor picture = at::arange(24 * 18).view({1, 24, 18}).remainder(251).to(at::kByte);
  io::write_image(folder / "init.png", picture);
  for (const double strength : {0.01, 0.3, 1.0}) {
    const auto options = with(
        {"sampling_steps=20", "init_image=" + (folder / "init.png").string(), fmt::format("strength={}", strength)});
    Generated made;
    {
      DiffusionPipeline own(model, at::kCPU);
      made = own.generate({"a dress"}, 4, std::vector<int64_t>{6}, options);
    }
    EXPECT_EQ(made.steps, std::max(1.0, 20 * strength));
    // With eps = 0 the sampler undoes alpha only: z + (sigma / alpha) n remains.
    const Tensor noise = initial_noise(at::tensor(std::vector<int64_t>{6}, at::kLong), {4, 8, 8}, 4);
    const double ratio = pipeline.model().schedule.noise_ratio(std::max(1000 * strength - 1, 9.0));
    const Tensor z = made.latents - ratio * noise;
    const Tensor scaled =
        io::to_float(io::center_crop(io::resize(picture, 16, 21, io::Resample::lanczos), 16, 16)).unsqueeze(0);
    EXPECT_LT(largest(z - pipeline.model().latent_space->encode(scaled)), 0.05 * ratio + 0.02) << strength;
  }
}

TEST_F(TinyPipeline, KeysOfOtherModelsAreRefusedByName) {
  const auto pipeline = load(make("model"), at::kCPU);
  const auto said = [&](const std::vector<std::string>& lines) {
    return message_of<ConfigError>([&] { pipeline->generate({"a dress"}, 1, 0, with(lines)); });
  };
  EXPECT_THAT(said({"temperature=0.5", "window=8"}),
              HasSubstr("temperature, window: means nothing to a diffusion model"));
  EXPECT_THAT(said({"steps=8"}), HasSubstr("sampling_steps"));
  EXPECT_THAT(said({"height=15"}), HasSubstr("16 x 16 is"));
  EXPECT_THAT(said({"aesthetic=7"}), HasSubstr("aesthetic: this network is not told"));
  EXPECT_THAT(said({"sampling_steps=2000"}), HasSubstr("2000"));
  EXPECT_THAT(said({"strength=0"}), HasSubstr("strength"));
  EXPECT_THAT(said({"strength=1.5"}), HasSubstr("strength"));
  EXPECT_THAT(said({"crop=[1]"}), HasSubstr("two numbers"));
  EXPECT_THAT(said({"sampler=unipc"}), HasSubstr("sampler"));
  EXPECT_THAT(message_of<ConfigError>([&] { pipeline->generate({"a hat"}, 1, 0, with({})); }), HasSubstr("dress, bag"));
  EXPECT_THAT(message_of<ConfigError>([&] {
                refuse_diffusion_keys(with({"eta=1", "guidance=2"}), "an autoregressive model");
              }),
              HasSubstr("eta: means nothing to an autoregressive model"));
  refuse_diffusion_keys(with({"guidance=2", "window=8"}), "an autoregressive model");
  EXPECT_EQ(changed_options(with({"guidance=2", "sampling_steps=7", "original_size=[1, 2]"})),
            "guidance=2 sampling_steps=7 original_size=[1, 2]");
}

TEST_F(TinyPipeline, PartsThatDoNotFitAreRefused) {
  const fs::path model = make("model"), other = make("other", {.scale = 0.2});
  const auto pipeline = load(model, at::kCPU);
  EXPECT_THAT(
      message_of<ConfigError>([&] { pipeline->generate({"a dress"}, 1, 0, with({"refiner=" + other.string()})); }),
      HasSubstr("another latent space"));
  EXPECT_THAT(message_of<ConfigError>([&] { load_diffusion_model(model, {.prediction = Prediction::v_prediction}); }),
              HasSubstr("predicts 'epsilon'"));
  fs::remove_all(model / "latent_space");
  EXPECT_THAT(message_of<DataError>([&] { load(model, at::kCPU); }), HasSubstr("neither vae/config.json"));
  fs::copy(FEWSTEP_SOURCE_DIR "/tests/golden/sdxl_pipeline/vae", other / "vae");
  fs::remove_all(other / "latent_space");
  EXPECT_EQ(message_of([&] { load(other, at::kCPU); }), "(no error)");  // 4 channels, too: fits by chance
  fs::create_directories(folder / "mixed");
  fs::copy(kSdxlRefiner / "unet", folder / "mixed" / "unet", fs::copy_options::recursive);
  for (const char* part : {"vae", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"})
    fs::copy(kSdxl / part, folder / "mixed" / part, fs::copy_options::recursive);
  fs::copy(kSdxl / "model_index.json", folder / "mixed");
  EXPECT_THAT(message_of<ConfigError>([&] { load(folder / "mixed", at::kCPU); }), HasSubstr("cross_attention_dim"));
}

// Loaded, saved and loaded again: a diffusers pipeline stays one, frozen parts are linked.
TEST_F(TinyPipeline, DiffusersFoldersSurviveARoundTrip) {
  for (const auto& source : {kSdxl, kSdxlRefiner}) {
    const DiffusionModel m = load_diffusion_model(source);
    const fs::path copy = folder / source.filename().string();
    save_diffusion_model(copy, {m.unet->config(), io::to_map(m.unet->state()), *m.conditioner, *m.latent_space,
                                m.schedule, m.prediction, m.sampling});
    const Json before = read_json(source / "model_index.json"), after = read_json(copy / "model_index.json");
    for (const auto& [key, value] : before.items()) EXPECT_EQ(after.value(key, Json()), value) << key;
    const auto run = [](const fs::path& from) {
      return load(from, at::kCPU)->generate({"a dress"}, 1, 0, with({"sampling_steps=3", "guidance=2"})).latents;
    };
    EXPECT_TRUE(run(source).equal(run(copy)));
  }
}

TEST_F(TinyPipeline, StepsKeyFollowsTheKind) {
  EXPECT_EQ(steps_key(make("model")), "sampling_steps");
  fs::create_directories(folder / "ar");
  std::ofstream(folder / "ar" / "model_index.json") << R"({"_class_name": "AutoregressivePipeline"})";
  EXPECT_EQ(steps_key(folder / "ar"), "steps");
}

}  // namespace
}  // namespace fewstep::pipelines
