// The trainer `diffusion` in the test's own process: what reaches the network, validation, starts, growth of conditions.
#include "trainers/diffusion.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/base/error.h"
#include "src/config/config.h"
#include "src/nn/module.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"
#include "tests/support/scratch.h"
#include "tests/trainers/diffusion_bench.h"
#include "trainers/loop.h"

namespace fewstep {
namespace {
using ::testing::HasSubstr;
using testing::Bench;
using testing::DiffusionConfigRoot;
using testing::kClass;
using testing::yaml_with;

// The network a trainer of this config starts with, and what its embeddings of time and numbers are.
struct Expected {
  models::UNet2DConditionModel unet;
  explicit Expected(const models::UNet2DConfig& c) : unet(c) { unet.initialise(3); }
  TensorMap taps(const Tensor& t, const Tensor& numbers) const {
    const NoGrad no_grad;
    const nn::TapScope scope({"time_emb", "add_emb"});
    models::UNetConditions c;
    c.context = at::zeros({t.size(0), 1, 12}), c.numbers = numbers;
    unet(at::zeros({t.size(0), 4, 8, 8}), t, c);
    return scope.values();
  }
};
models::UNet2DConfig config_of(const Bench& bench, int64_t numbers) {
  models::UNet2DConfig c = bench.root.config.start.unet;
  c.in_channels = c.out_channels = 4, c.sample_size = 8, c.cross_attention_dim = 12;
  c.addition_embed_type = "text_time", c.projection_class_embeddings_input_dim = numbers * 16;
  return c;
}

// Timesteps that reached the network in `steps` steps: each row of `time_emb` is one of the 1000 possible ones.
std::vector<int64_t> timesteps_seen(const std::string& more, int steps) {
  Bench bench(yaml_with(kClass, more + "optimizer: {lr: 1.0e-12}\n"));
  const Expected expected(config_of(bench, 5));
  const Tensor all = expected.taps(at::arange(1000), at::zeros({1000, 5})).at("time_emb");
  std::vector<int64_t> seen;
  for (int step = 0; step < steps; ++step) {
    const nn::TapScope scope({"time_emb"});
    bench.trainer->step(bench.batch(8 * (step % 6)), {.step = step, .epoch = 0, .seed = 3});
    const Tensor distance = at::cdist(scope.values().at("time_emb").detach(), all);
    EXPECT_LT(std::get<0>(distance.min(1)).max().item<double>(), 1e-3);
    const Tensor nearest = std::get<1>(distance.min(1));
    for (int64_t i = 0; i < nearest.size(0); ++i) seen.push_back(nearest[i].item<int64_t>());
  }
  return seen;
}

TEST(Diffusion, TheRefinersRangeReachesTheNetwork) {
  const auto refiner = timesteps_seen("timesteps: {min: 0, max: 0.2}\n", 40);
  EXPECT_EQ(refiner.size(), 320u);
  EXPECT_LT(*std::max_element(refiner.begin(), refiner.end()), 200);
  EXPECT_GT(*std::max_element(refiner.begin(), refiner.end()), 190);
  const auto all = timesteps_seen("", 40);
  EXPECT_GT(*std::max_element(all.begin(), all.end()), 950);
  EXPECT_GT(std::count_if(all.begin(), all.end(), [](int64_t t) { return t >= 200; }), 200);
}

TEST(Diffusion, TheNumbersOfASampleReachTheNetworkInTheirOrder) {
  Bench bench(yaml_with(kClass, "dropout: {text: 0, size: 0, crop: 0, aesthetic: 0}\n"));
  const Expected expected(config_of(bench, 5));
  const Batch batch = bench.batch(3);
  Tensor numbers = at::empty({8, 5});
  for (int64_t i = 0; i < 8; ++i) {
    const Sample s = bench.data->get(3 + i, 0, 0);
    numbers[i] = at::tensor({static_cast<double>(s.micro.original_height), static_cast<double>(s.micro.original_width),
                             static_cast<double>(s.micro.crop_top), static_cast<double>(s.micro.crop_left), s.aesthetic}, at::kFloat);
  }
  const Tensor want = expected.taps(at::zeros({8}, at::kLong), numbers).at("add_emb");
  const nn::TapScope scope({"add_emb"});
  bench.trainer->step(batch, {.step = 0, .epoch = 0, .seed = 3});
  EXPECT_LE((scope.values().at("add_emb").detach() - want).abs().max().item<double>(), 1e-5);
  numbers.select(1, 4).add_(1.0);  // the control: another score is another embedding
  EXPECT_GT((expected.taps(at::zeros({8}, at::kLong), numbers).at("add_emb") - want).abs().max().item<double>(), 1e-3);
}

TEST(Diffusion, AModelThatIsNotToldSizesDoesNotSeeThem) {
  Bench bench(yaml_with("{kind: class, dim: 12, micro: {size: false, crop: false, target: false}}", ""));
  const nn::TapScope scope({"add_emb", "time_emb"});
  bench.trainer->step(bench.batch(0), {.step = 0, .epoch = 0, .seed = 3});
  EXPECT_TRUE(scope.values().contains("time_emb"));
  EXPECT_FALSE(scope.values().contains("add_emb"));
}

// Dropped numbers are zeros of the embedding: rows of the vector beside t, each group by itself at its own rate.
TEST(Diffusion, ConditionsAreDroppedIndependently) {
  int64_t size = 0, crop = 0, both = 0, text = 0;
  const int64_t N = 4000;
  pipelines::ConditionDropout rates;
  rates.text = 0.1, rates.size = 0.3, rates.crop = 0.5, rates.target = 0, rates.aesthetic = 0;
  const pipelines::ConditionDrop drop = pipelines::draw_drop(rates, at::arange(N), 5, 2);
  size = drop.size.sum().item<int64_t>(), crop = drop.crop.sum().item<int64_t>();
  both = drop.size.logical_and(drop.crop).sum().item<int64_t>(), text = drop.text.sum().item<int64_t>();
  EXPECT_NEAR(static_cast<double>(size) / N, 0.3, 0.03);
  EXPECT_NEAR(static_cast<double>(crop) / N, 0.5, 0.03);
  EXPECT_NEAR(static_cast<double>(both) / N, 0.15, 0.02);
  EXPECT_NEAR(static_cast<double>(text) / N, 0.1, 0.02);
  EXPECT_FALSE(drop.target.defined());
}

// At the start the network's output is 0: the loss is that of the target, noise of unit variance.
TEST(Diffusion, TheFirstLossIsThatOfTheTarget) {
  Bench bench(yaml_with(kClass, ""));
  Metrics m = bench.trainer->step(bench.batch(0), {.step = 0, .epoch = 0, .seed = 3});
  EXPECT_NEAR(m.reduce(*bench.world).at("loss"), 1.0, 0.1);
  // With a noise offset of level 1 the noise has variance 2, and is the target as well.
  Bench offset(yaml_with(kClass, "loss: {noise_offset: 1}\n"));
  Metrics o = offset.trainer->step(offset.batch(0, 48), {.step = 0, .epoch = 0, .seed = 3});
  EXPECT_NEAR(o.reduce(*offset.world).at("loss"), 2.0, 0.3);
}

TEST(Diffusion, ValidationIsTheSameEachTimeAndByNoiseLevel) {
  Bench bench(yaml_with(kClass, "validation_levels: 4\noptimizer: {lr: 1.0e-2}\n"));
  const auto first = bench.validate(), again = bench.validate();
  EXPECT_EQ(first, again);
  for (const char* name : {"loss", "loss[t<0.25]", "loss[t<0.50]", "loss[t<0.75]", "loss[t<1.00]"}) ASSERT_TRUE(first.contains(name)) << name;
  EXPECT_NEAR(first.at("loss"), (first.at("loss[t<0.25]") + first.at("loss[t<0.50]") + first.at("loss[t<0.75]") + first.at("loss[t<1.00]")) / 4, 1e-5);
  // Neither the batches it comes in nor a noise offset change it.
  Metrics parts;
  {
    const NoGrad no_grad;
    for (int64_t i = 0; i < 48; i += 12) parts.merge(bench.trainer->validate(bench.batch(i, 12)));
  }
  EXPECT_NEAR(parts.reduce(*bench.world).at("loss[t<0.50]"), first.at("loss[t<0.50]"), 1e-5);
  for (int step = 0; step < 30; ++step) bench.trainer->step(bench.batch(8 * (step % 6)), {.step = step, .epoch = 0, .seed = 3});
  EXPECT_LT(bench.validate().at("loss"), first.at("loss") - 0.1);

  Bench refiner(yaml_with(kClass, "validation_levels: 2\ntimesteps: {max: 0.2}\n"));
  EXPECT_TRUE(refiner.validate().contains("loss[t<0.1]"));
  EXPECT_TRUE(refiner.validate().contains("loss[t<0.2]"));
}

TEST(Diffusion, EveryPredictionAndScheduleTrains) {
  for (const char* more : {"schedule: {kind: flow}\nprediction: flow_prediction\ntimesteps: {kind: logit_normal, stratified: true}\n",
                           "prediction: v_prediction\nschedule: {zero_terminal_snr: true}\n", "prediction: sample\nschedule: {kind: cosine}\n",
                           "loss: {weighting: min_snr}\n", "loss: {huber: snr}\n"}) {
    Bench bench(yaml_with(kClass, std::string(more) + "optimizer: {lr: 1.0e-2}\n"));
    const double before = bench.validate().at("loss");
    for (int step = 0; step < 20; ++step) bench.trainer->step(bench.batch(8 * (step % 6)), {.step = step, .epoch = 0, .seed = 3});
    EXPECT_LT(bench.validate().at("loss"), before) << more;
    EXPECT_TRUE(bench.trainer->sample_grid(1).defined()) << more;
  }
}

TEST(Diffusion, GridsHaveAColumnAClassAndARefinerShowsBeforeAndAfter) {
  Bench bench(yaml_with(kClass, ""));
  const Tensor grid = bench.trainer->sample_grid(1);  // 3 classes, 2 rows of 16 x 16, twice as large, 2 between
  EXPECT_EQ(grid.sizes(), (std::vector<int64_t>{1, 2 * 34 + 2, 3 * 34 + 2}));
  Bench refiner(yaml_with(kClass, "timesteps: {max: 0.4}\n"));
  EXPECT_EQ(refiner.trainer->sample_grid(1).sizes(), grid.sizes());  // 3 held-out images, and under them 3 refined ones
  EXPECT_TRUE(bench.trainer->sample_grid(1).equal(grid));
}

std::string start_yaml(const std::filesystem::path& folder, const std::string& more) { return fmt::format("start: {}\n{}", folder.string(), more); }

TEST(Diffusion, AnotherPredictionThanTheStartsIsRefusedWithBothNames) {
  Bench bench(yaml_with(kClass, "prediction: v_prediction\n"));
  const testing::ScratchFolder folder("diffusion");
  bench.trainer->save_model(folder / "model");
  EXPECT_THAT(message_of<ConfigError>([&] { Bench(start_yaml(folder / "model", "")); }),
              AllOf(HasSubstr("predicts 'v_prediction'"), HasSubstr("trainer.prediction is 'epsilon'"), HasSubstr("set trainer.prediction=v_prediction")));
  Bench same(start_yaml(folder / "model", "prediction: v_prediction\n"));
  EXPECT_EQ(same.validate(), bench.validate());
}

TEST(Diffusion, AddedNumbersStartWithoutEffectAndThenHaveOne) {
  for (const char* micro : {"{size: true, crop: false, target: false}", "{size: false, crop: false, target: false}"}) {
    Bench bench(yaml_with(fmt::format("{{kind: class, dim: 12, micro: {}}}", micro), "optimizer: {lr: 1.0e-2}\n"));
    for (int step = 0; step < 5; ++step) bench.trainer->step(bench.batch(8 * (step % 6)), {.step = step, .epoch = 0, .seed = 3});
    const testing::ScratchFolder folder("diffusion");
    bench.trainer->save_model(folder / "model");
    const std::string more = "add_numbers: [aesthetic, crop]\noptimizer: {lr: 1.0e-2}\n";
    Bench grown(start_yaml(folder / "model", more));
    const auto before = bench.validate(), after = grown.validate();
    for (const auto& [name, value] : before) EXPECT_NEAR(value, after.at(name), 1e-5) << name << micro;
    for (int step = 0; step < 5; ++step) grown.trainer->step(grown.batch(8 * (step % 6)), {.step = step, .epoch = 0, .seed = 3});
    const NoGrad no_grad;
    Batch scored = grown.batch(0, 24);
    Metrics usual = grown.trainer->validate(scored);
    scored.aesthetic = scored.aesthetic + 3.0;
    Metrics higher = grown.trainer->validate(scored);
    EXPECT_NE(usual.reduce(*grown.world).at("loss"), higher.reduce(*grown.world).at("loss")) << "the score has no effect after training";
    grown.trainer->save_model(folder / "grown");
    EXPECT_THAT(message_of<ConfigError>([&] { Bench(start_yaml(folder / "grown", more)); }), HasSubstr("'aesthetic': the model of trainer.start is told it already"));
  }
}

// The configs for full scale describe the published networks, up to what follows from their VAE and text encoders.
TEST(Diffusion, TheFullConfigsAreSdxl) {
  struct Case {
    const char* file;
    int64_t context, vector, parameters;
    double top;  // of the noise levels
  };
  for (const Case& c : {Case{"sdxl_base", 2048, 2816, 2567463684, 1.0}, Case{"sdxl_refiner", 1280, 2560, 2259526660, 0.2}}) {
    const auto run = config::load<RunConfig>(std::filesystem::path(FEWSTEP_SOURCE_DIR) / "configs/sdxl/full" / (std::string(c.file) + ".yaml"));
    models::UNet2DConfig unet = dynamic_cast<const DiffusionConfig&>(*run.trainer).start.unet;
    unet.cross_attention_dim = c.context, unet.addition_embed_type = "text_time", unet.projection_class_embeddings_input_dim = c.vector;
    EXPECT_EQ(dynamic_cast<const DiffusionConfig&>(*run.trainer).task.timesteps.max, c.top);
    const nn::BuildScope meta(at::kMeta);
    EXPECT_EQ(models::UNet2DConditionModel(unet).parameter_count(), c.parameters) << c.file;
  }
}

TEST(Diffusion, ConfigsThatMakeNoSenseAreAnswered) {
  const auto says = [](const std::string& yaml) { return message_of<ConfigError>([&] { config::parse<DiffusionConfigRoot>(yaml, "f"); }); };
  EXPECT_THAT(says("prediction: epsilon\n"), AllOf(HasSubstr("latents: must be given, or `start`"), HasSubstr("conditioner: must be given")));
  EXPECT_THAT(says("start: x\nlatents: {kind: identity}\n"), HasSubstr("latents: comes from `start`: leave it out"));
  EXPECT_THAT(says(yaml_with(kClass, "lora: {rank: 4}\n")), HasSubstr("an adapter needs a model it belongs to: set trainer.start"));
  EXPECT_THAT(says(yaml_with(kClass, "timesteps: {min: 0.3, max: 0.2}\n")), HasSubstr("timesteps.max: must be above min"));
  EXPECT_THAT(message_of<ConfigError>([&] { Bench(yaml_with(kClass, "timesteps: {min: 0.2004, max: 0.2006}\n")); }), HasSubstr("no whole timestep"));
  EXPECT_THAT(message_of<ConfigError>([&] { Bench(yaml_with("{kind: class, dim: 12}", "schedule: {kind: flow}\nprediction: flow_prediction\nsample: {sampler: ddpm}\n")); }),
              Not(HasSubstr("(no error)")));
}

}  // namespace
}  // namespace fewstep
