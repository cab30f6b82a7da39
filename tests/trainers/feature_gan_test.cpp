// The adversarial stage: gradients against one graph, who gets them, the mix of the real side, ranks, resume, errors.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/models/autoencoder_kl.h"
#include "src/models/conv_encoder.h"
#include "src/models/dinov2.h"
#include "src/models/model.h"
#include "src/nn/gradients.h"
#include "src/nn/layers.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/support/message_of.h"
#include "tests/trainers/feature_gan_bench.h"

namespace fewstep {
namespace {

using ::testing::HasSubstr;
using testing::GanBench;
using testing::GanSetting;

double gan_difference(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.sizes(), b.sizes());
  return ((a - b).abs().max() / b.abs().max()).item<double>();
}

TensorMap copy_of(const nn::Module& module) {
  TensorMap out;
  for (const auto& [name, tensor] : module.state()) out.emplace(name, tensor.detach().clone());
  return out;
}

double gradient_norm(const nn::Module& module) {
  double sum = 0;
  for (const auto& [name, tensor] : module.parameters())
    if (tensor.grad().defined()) sum += tensor.grad().square().sum().item<double>();
  return std::sqrt(sum);
}

class FeatureGanTest : public ::testing::Test {
 protected:
  FeatureGanTest() {
    testing::write_conv_features(folder_.path() / "conv");
    testing::write_vit_features(folder_.path() / "vit");
    testing::write_teacher_file(folder_.path() / "teacher.h5", {0, 3, 4, 7, 9});
  }
  FeatureGanConfig config(const std::string& features = "conv") const {
    FeatureGanConfig c;
    c.features = (folder_.path() / features).string();
    c.heads.norm = "group", c.heads.norm_groups = 4, c.heads.projection_width = 8, c.heads.kernel = 3;
    c.real_share = 1.0, c.any_teacher = true;
    c.teacher_images = (folder_.path() / "teacher.h5").string();
    c.optimizer.lr = 1e-2;
    return c;
  }
  const ::fewstep::testing::ScratchFolder folder_{"gan"};
};

// The whole of L_G in one autograd graph, from parts that have tests of their own.
Tensor loss_in_one_graph(const GanBench& bench, const FeatureGanConfig& c, const Tensor& x0, const Batch& batch, const StepContext& at,
                         nn::Module& features) {
  nn::Module& heads = const_cast<models::FeatureDiscriminator&>(bench.gan->heads());
  const nn::EvalMode eval(heads);
  const int64_t key = at.step * 16;  // turn 0
  Tensor images = bench.model.latent_space->decode(x0);
  if (c.crop.size > 0)
    images = take_pixel_windows(images, latent_windows(c.crop, batch.ids, x0.size(2), x0.size(3), {.seed = at.seed, .step = key}), 2);
  const Tensor seen = augment(images, c.augmentation, batch.ids, {.seed = at.seed, .step = key, .branch = 3});
  models::FeatureTapOptions taps{.blocks = {}, .side = 16};
  auto* vit = dynamic_cast<models::Dinov2Model*>(&features);
  taps.blocks = vit ? std::vector<int64_t>{0, 1, 2, 3, 4} : std::vector<int64_t>{0, 1};
  if (vit) taps.side = 0;  // as decoded
  const auto tapped = vit ? models::feature_taps(*vit, seen, taps) : models::feature_taps(dynamic_cast<models::ConvEncoder&>(features), seen, taps);
  const models::UNetConditions conditions = bench.conditions(batch);
  const Tensor text = (bench.model.conditioner->pooled_width() > 0 ? conditions.pooled : conditions.context.mean(1)).to(x0.scalar_type());
  const int64_t B = batch.size(), G = (B + c.heads.virtual_batch - 1) / c.heads.virtual_batch;
  const Tensor places = at::arange(B), logits = bench.gan->heads()(tapped, text, places.remainder(G) * B + places);
  return generator_loss(c.loss, logits).sum() * bench.gan->rung_weight(1) / static_cast<double>(B);
}

TEST_F(FeatureGanTest, TheGeneratorsGradientIsThatOfOneGraph) {
  struct Case {
    std::string features, conditioner;
    int64_t crop, part;
    AdversarialLoss loss;
    std::string norm;
  };
  const Case cases[] = {{"conv", testing::kClass, 0, 0, AdversarialLoss::hinge, "group"},
                        {"conv", testing::kGanText, 5, 3, AdversarialLoss::non_saturating, "batch_local"},
                        {"vit", testing::kGanText, 0, 2, AdversarialLoss::non_saturating, "batch_local"},
                        {"vit", testing::kClass, 4, 0, AdversarialLoss::hinge, "group"}};
  for (const Case& k : cases) {
    FeatureGanConfig c = config(k.features);
    c.crop.size = k.crop, c.decode_part = k.part, c.loss = k.loss, c.weight = 0.7, c.rung_law = RungLaw::alpha;
    c.heads.norm = k.norm, c.heads.virtual_batch = 4;
    GanBench bench(c, {.conditioner = k.conditioner});
    EXPECT_NEAR(bench.gan->rung_weight(1), 0.7 * (1 - 2.5 / 3.5), 1e-6);  // flow, shift 2.5: sigma of rung 1 is 0.714
    const Batch batch = bench.batch(2);
    const StepContext at{.step = 5, .epoch = 0, .seed = 3};
    nn::Conv2d student(4, 4, {.kernel = 3, .padding = 1});
    student.initialise(4);
    student.to(at::kDouble);
    student.requires_grad(true);
    const Tensor in = normal_by_id(batch.ids, {4, 8, 8}, 1, Stream::noise, 0).to(at::kDouble);
    const auto features = models::load_model(folder_.path() / k.features / "encoder");
    features->to(at::kDouble);
    const auto expected = nn::gradients(loss_in_one_graph(bench, c, student(in), batch, at, *features), {student.weight, student.bias}, false);
    Metrics metrics;
    const models::UNetConditions conditions = bench.conditions(batch);
    const TensorMap before = copy_of(bench.gan->heads());
    const Tensor x0 = student(in);
    const PixelGradient got = bench.gan->generator_turn(x0, {.batch = batch, .conditions = conditions, .rung = 1, .at = at}, metrics);
    EXPECT_FALSE(got.gradient.requires_grad());
    EXPECT_FALSE(student.weight.grad().defined());
    EXPECT_EQ(gradient_norm(bench.gan->heads()), 0.0);
    for (const auto& [name, tensor] : copy_of(bench.gan->heads())) EXPECT_TRUE(tensor.equal(before.at(name))) << name;
    const auto through = nn::gradients(injected_gradient(x0, got.gradient), {student.weight, student.bias}, false);
    const double gap = std::max(gan_difference(through[0], expected[0]), gan_difference(through[1], expected[1]));
    EXPECT_GT(expected[0].abs().max().item<double>(), 1e-9);
    EXPECT_LT(gap, 1e-5);
    std::printf("%s, crop %ld, decode_part %ld: largest relative difference %.2e\n", k.features.c_str(), k.crop, k.part, gap);
  }
}

TEST_F(FeatureGanTest, TheCriticsTurnGivesGradientsToTheHeadsOnly) {
  FeatureGanConfig c = config();
  c.real_share = 0.5, c.r1_weight = 10.0;
  GanBench bench(c, {.conditioner = testing::kGanText});
  bench.model.unet->requires_grad(true);
  bench.model.conditioner->trainable()->requires_grad(true);
  const Batch batch = bench.batch(0);
  const models::UNetConditions conditions = (*bench.model.conditioner)(condition_input(batch));  // with a graph
  const Tensor x0 = bench.fakes(batch, 0).requires_grad_(true);
  const TensorMap before = copy_of(bench.gan->heads());
  Metrics metrics;
  bench.gan->critic_turn(x0 * 2, {}, {.batch = batch, .conditions = conditions, .at = {.step = 0, .epoch = 0, .seed = 3}}, true, metrics);
  for (const auto& [name, tensor] : bench.gan->heads().parameters()) EXPECT_GT(tensor.grad().abs().max().item<double>(), 0.0) << name;
  EXPECT_FALSE(x0.grad().defined());
  EXPECT_EQ(gradient_norm(*bench.model.unet), 0.0);
  EXPECT_EQ(gradient_norm(*bench.model.conditioner->trainable()), 0.0);
  for (const auto& [name, tensor] : bench.gan->heads().buffers()) EXPECT_FALSE(tensor.equal(before.at(name))) << name;  // one power step
  bench.gan->step({.step = 0, .epoch = 0, .seed = 3}, metrics);
  EXPECT_EQ(gradient_norm(bench.gan->heads()), 0.0);
  for (const auto& [name, tensor] : bench.gan->heads().parameters()) EXPECT_FALSE(tensor.equal(before.at(name))) << name;
}

// The perturbed pictures are augmented as the others are, by weights that no power step lies between.
TEST_F(FeatureGanTest, ApproximateR1HasOneKey) {
  FeatureGanConfig c = config();
  c.r1_weight = 1.0, c.r1_alpha = 0.05, c.condition = GanCondition::none;
  GanBench bench(c);
  const Batch batch = bench.batch(1);
  const models::UNetConditions conditions = bench.conditions(batch);
  const StepContext at{.step = 4, .epoch = 0, .seed = 3};
  Metrics metrics;
  bench.gan->critic_turn(bench.fakes(batch, 0), {}, {.batch = batch, .conditions = conditions, .at = at}, true, metrics);
  const double got = metrics.reduce(bench.world).at("gan_r1");
  const auto features = models::load_model(folder_.path() / "conv" / "encoder");
  features->to(at::kDouble);
  const NoGrad no_grad;
  const nn::EvalMode eval(const_cast<models::FeatureDiscriminator&>(bench.gan->heads()));
  const auto D = [&](const Tensor& images, int64_t branch) {
    const Tensor seen = augment(images, c.augmentation, batch.ids, {.seed = 3, .step = 4 * 16, .branch = branch});
    return bench.gan->heads()(models::feature_taps(dynamic_cast<models::ConvEncoder&>(*features), seen, {.blocks = {0, 1}}), {}, {});
  };
  const Tensor images = batch.images.to(at::kDouble);
  const Tensor there = images + 0.05 * normal_by_id(batch.ids, {1, 16, 16}, 3, Stream::discriminator, 4 * 16).to(at::kDouble);
  const double expected = (D(images, 0) - D(there, 0)).square().mean().item<double>();
  const double other_key = (D(images, 0) - D(there, 1)).square().mean().item<double>();
  EXPECT_NEAR(got / expected, 1.0, 1e-9);
  EXPECT_GT(other_key, 3 * expected);  // what two keys would have measured
}

TEST_F(FeatureGanTest, RealTeacherAndFakeAreCountedApart) {
  FeatureGanConfig c = config();
  c.real_share = 0.25, c.augmented = false, c.condition = GanCondition::none;
  GanBench bench(c);
  const auto features = models::load_model(folder_.path() / "conv" / "encoder");
  features->to(at::kDouble);
  const auto D = [&](const Tensor& images) {  // logits, after the turn and before the update: those of the turn
    const NoGrad no_grad;
    const nn::EvalMode eval(const_cast<models::FeatureDiscriminator&>(bench.gan->heads()));
    return bench.gan->heads()(models::feature_taps(dynamic_cast<models::ConvEncoder&>(*features), images, {.blocks = {0, 1}}), {}, {});
  };
  const TeacherImages file(folder_.path() / "teacher.h5");
  std::vector<double> loss;
  for (int64_t step = 0; step < 40; ++step) {
    const Batch batch = bench.batch(step);
    const models::UNetConditions conditions = bench.conditions(batch);
    Metrics metrics;
    const StepContext at{.step = step, .epoch = 0, .seed = 3};
    const Tensor x0 = bench.fakes(batch, step);
    bench.gan->critic_turn(x0, {}, {.batch = batch, .conditions = conditions, .at = at}, true, metrics);
    const auto seen = metrics.reduce(bench.world);
    const Tensor real = real_places(at::arange(8, at::kLong), 8, 0.25, 3, step * 16), rows = real.nonzero().squeeze(1);
    const Tensor others = real.logical_not().nonzero().squeeze(1);
    const auto picked = file.pick(batch.ids.index_select(0, others), {1, 16, 16}, true);
    const Tensor on_real = D(batch.images.index_select(0, rows).to(at::kDouble)), on_teacher = D(picked.images.to(at::kDouble));
    const Tensor on_fake = D(bench.model.latent_space->decode(x0));
    EXPECT_NEAR(seen.at("gan_logit_real"), on_real.mean().item<double>(), 1e-9);
    EXPECT_NEAR(seen.at("gan_logit_teacher"), on_teacher.mean().item<double>(), 1e-9);
    EXPECT_NEAR(seen.at("gan_logit_fake"), on_fake.mean().item<double>(), 1e-9);
    EXPECT_NEAR(seen.at("gan_accuracy_real"), critic_accuracy(on_real, true).share().value(), 1e-9);
    EXPECT_NEAR(seen.at("gan_accuracy_teacher"), critic_accuracy(on_teacher, true).share().value(), 1e-9);
    EXPECT_NEAR(seen.at("gan_accuracy_fake"), critic_accuracy(on_fake, false).share().value(), 1e-9);
    EXPECT_NEAR(seen.at("gan_same_sample"), static_cast<double>(picked.same_sample) / 6, 1e-12);
    loss.push_back(seen.at("gan_critic"));
    bench.gan->step(at, metrics);
  }
  EXPECT_LT(loss.back(), 0.5 * loss.front());  // noise is told from pictures
  c.real_share = 1.0, c.teacher_images.clear();
  GanBench only(c);
  const Batch batch = only.batch(0);
  const models::UNetConditions conditions = only.conditions(batch);
  Metrics metrics;
  only.gan->critic_turn(only.fakes(batch, 0), {}, {.batch = batch, .conditions = conditions}, true, metrics);
  const auto seen = metrics.reduce(only.world);
  EXPECT_TRUE(seen.contains("gan_accuracy_real"));
  EXPECT_FALSE(seen.contains("gan_accuracy_teacher"));
}

// Latents of an autoencoder, cached: the decoder works in float32 whatever the heads do, and real pictures are as good as their latents.
TEST_F(FeatureGanTest, PicturesOfAnAutoencoder) {
  models::AutoencoderKlConfig v;
  v.in_channels = v.out_channels = 1, v.block_out_channels = {8, 8}, v.norm_num_groups = 4, v.sample_size = 16;
  models::AutoencoderKL vae(v);
  vae.initialise(21);
  models::save_model(folder_.path() / "model" / "vae", vae, v.to_json());
  FeatureGanConfig c = config();
  c.decode_part = 3, c.augmented = false, c.condition = GanCondition::none, c.loss = AdversarialLoss::non_saturating;
  for (const Precision precision : {Precision::float32, Precision::float64}) {
    GanBench bench(c, {.precision = precision});
    bench.model.latent_space = pipelines::LatentSpace::load(folder_.path() / "model", at::kCPU);
    FeatureGan gan(c, bench.model, bench.schedule, {}, bench.context);
    const auto dtype = precision == Precision::float64 ? at::kDouble : at::kFloat;
    const auto features = models::load_model(folder_.path() / "conv" / "encoder");
    features->to(dtype);
    const auto D = [&](const Tensor& images) {
      const nn::EvalMode eval(const_cast<models::FeatureDiscriminator&>(gan.heads()));
      return gan.heads()(models::feature_taps(dynamic_cast<models::ConvEncoder&>(*features), images.to(dtype), {.blocks = {0, 1}}), {}, {});
    };
    Batch batch = bench.batch(0);
    const models::UNetConditions conditions = bench.conditions(batch);
    batch.latent_mean = normal_by_id(batch.ids, {4, 8, 8}, 8, Stream::noise, 0), batch.latent_std = at::full({8, 4, 8, 8}, 0.1);
    batch.images = Tensor();
    const GanBatch on{.batch = batch, .conditions = conditions, .rung = 1};
    const Tensor x0 = bench.fakes(batch, 0).requires_grad_(true);
    Metrics metrics;
    const PixelGradient got = gan.generator_turn(x0, on, metrics);
    const Tensor loss = generator_loss(c.loss, D(bench.model.latent_space->decode(x0.to(at::kFloat)))).sum() / 8;
    EXPECT_LT(gan_difference(got.gradient, nn::gradients(loss, {x0}, false).front()), 1e-5);
    EXPECT_EQ(got.images.sizes(), at::IntArrayRef({8, 1, 16, 16}));
    gan.critic_turn(x0, got.images, on, true, metrics);
    const auto seen = metrics.reduce(bench.world);
    const NoGrad no_grad;
    const Tensor real = bench.model.latent_space->decode(bench.model.latent_space->from_posterior(batch.latent_mean, {}));
    EXPECT_NEAR(seen.at("gan_logit_real"), D(real).mean().item<double>(), 1e-5);
    EXPECT_NEAR(seen.at("gan_logit_fake"), D(got.images).mean().item<double>(), 1e-5);
  }
}

TEST_F(FeatureGanTest, MicroBatchesEqualTheBatch) {
  FeatureGanConfig c = config("vit");
  c.real_share = 0.5, c.r1_weight = 1.0;
  GanBench whole(c), parts(c, {.accumulate = 2});
  for (int64_t step = 0; step < 4; ++step) {
    const Batch batch = whole.batch(step);
    const StepContext at{.step = step, .epoch = 0, .seed = 3};
    const models::UNetConditions conditions = whole.conditions(batch);
    const Tensor x0 = whole.fakes(batch, step);
    Metrics metrics;
    const Tensor one = whole.gan->generator_turn(x0, {.batch = batch, .conditions = conditions, .rung = 1, .at = at}, metrics).gradient;
    whole.gan->critic_turn(x0, {}, {.batch = batch, .conditions = conditions, .rung = 1, .at = at}, true, metrics);
    std::vector<Tensor> pieces;
    for (int64_t first : {0, 4}) {
      const Batch micro = batch.slice(first, first + 4);
      const models::UNetConditions its = whole.conditions(micro);
      const GanBatch on{.batch = micro, .conditions = its, .first = first, .rung = 1, .at = at};
      pieces.push_back(parts.gan->generator_turn(x0.narrow(0, first, 4), on, metrics).gradient);
    }
    EXPECT_LT(gan_difference(at::cat(pieces), one), 1e-10) << step;
    for (int64_t first : {0, 4}) {
      const Batch micro = batch.slice(first, first + 4);
      const models::UNetConditions its = whole.conditions(micro);
      parts.gan->critic_turn(x0.narrow(0, first, 4), {}, {.batch = micro, .conditions = its, .first = first, .rung = 1, .at = at}, first == 4, metrics);
    }
    whole.gan->step(at, metrics), parts.gan->step(at, metrics);
  }
  const TensorMap expected = copy_of(whole.gan->heads());
  for (const auto& [name, tensor] : copy_of(parts.gan->heads())) EXPECT_LT(gan_difference(tensor, expected.at(name)), 1e-10) << name;
}

TEST_F(FeatureGanTest, ResumesBitForBitWithThePowerIterations) {
  FeatureGanConfig c = config();
  c.real_share = 0.5;
  const auto run = [&](GanBench& bench, int64_t from, int64_t to) {
    for (int64_t step = from; step < to; ++step) {
      const Batch batch = bench.batch(step);
      const models::UNetConditions conditions = bench.conditions(batch);
      const StepContext at{.step = step, .epoch = 0, .seed = 3};
      Metrics metrics;
      bench.gan->critic_turn(bench.fakes(batch, step), {}, {.batch = batch, .conditions = conditions, .at = at}, true, metrics);
      bench.gan->step(at, metrics);
    }
  };
  const GanSetting setting{.precision = Precision::float32};
  GanBench whole(c, setting), first(c, setting), second(c, {.precision = Precision::float32, .seed = 3});
  run(whole, 0, 6), run(first, 0, 3);
  std::map<std::string, TensorMap> files;
  first.gan->add_state(files);
  for (auto& [stem, tensors] : files)
    for (auto& [name, tensor] : tensors) tensor = tensor.clone();
  run(second, 0, 1);  // somewhere else
  second.gan->load_state(files);
  run(second, 3, 6);
  const TensorMap expected = copy_of(whole.gan->heads());
  for (const auto& [name, tensor] : copy_of(second.gan->heads())) EXPECT_TRUE(tensor.equal(expected.at(name))) << name;
  std::map<std::string, TensorMap> bare = files;
  std::erase_if(bare["weights"], [](const auto& item) { return item.first.ends_with("weight_u"); });
  EXPECT_THAT(message_of<DataError>([&] { second.gan->load_state(bare); }), HasSubstr("weight_u"));
  bare = files;
  bare.erase("gan");
  EXPECT_THAT(message_of<DataError>([&] { second.gan->load_state(bare); }), HasSubstr("written without a discriminator"));
  bare = files;
  bare["gan"]["features"] = bare["gan"]["features"] + 1;
  EXPECT_THAT(message_of<DataError>([&] { second.gan->load_state(bare); }), HasSubstr("it has other weights"));
}

// The real side is told the caption of each picture it shows: with heads that read nothing but the text this can be seen.
TEST_F(FeatureGanTest, TeacherImagesBringTheirOwnCaption) {
  testing::write_teacher_file(folder_.path() / "odd.h5", {1, 3, 5}, 16, "other data");  // all "a red thing"
  testing::write_teacher_file(folder_.path() / "even.h5", {2, 4, 6}, 16, "other data");  // the same pictures, "a blue thing"
  std::map<std::string, double> seen[2];
  for (int i : {0, 1}) {
    FeatureGanConfig c = config();
    c.real_share = 0, c.augmented = false;
    c.teacher_images = (folder_.path() / (i ? "even.h5" : "odd.h5")).string();
    GanBench bench(c, {.conditioner = testing::kGanText});
    const Batch batch = bench.batch(0);
    const models::UNetConditions conditions = bench.conditions(batch);
    Metrics metrics;
    bench.gan->critic_turn(bench.fakes(batch, 0), {}, {.batch = batch, .conditions = conditions}, true, metrics);
    seen[i] = metrics.reduce(bench.world);
    EXPECT_EQ(seen[i].at("gan_same_sample"), 0.0);
  }
  EXPECT_NE(seen[0].at("gan_logit_teacher"), seen[1].at("gan_logit_teacher"));
  EXPECT_EQ(seen[0].at("gan_logit_fake"), seen[1].at("gan_logit_fake"));
}

TEST_F(FeatureGanTest, ARungOfNoWeightIsLeftOut) {
  FeatureGanConfig c = config();
  c.rung_law = RungLaw::alpha;
  GanBench bench(c);
  const Batch batch = bench.batch(0);
  const models::UNetConditions conditions = bench.conditions(batch);
  Metrics metrics;
  const Tensor x0 = bench.fakes(batch, 0);
  const PixelGradient got = bench.gan->generator_turn(x0, {.batch = batch, .conditions = conditions, .rung = 0}, metrics);
  EXPECT_TRUE(got.gradient.equal(at::zeros_like(x0)));
  EXPECT_FALSE(got.images.defined());
  c.rung_weights = {0.5, 2};
  EXPECT_DOUBLE_EQ(GanBench(c).gan->rung_weight(1), 2.0);
  c.start_step = 10, c.critic_lead = 4;
  const GanBench late(c);
  EXPECT_FALSE(late.gan->critic_active(5));
  EXPECT_TRUE(late.gan->critic_active(6));
  EXPECT_FALSE(late.gan->generator_active(9));
  EXPECT_TRUE(late.gan->generator_active(10));
}

TEST_F(FeatureGanTest, NotFiniteIsAnErrorThatSaysWhere) {
  GanBench bench(config());
  const Batch batch = bench.batch(0);
  const models::UNetConditions conditions = bench.conditions(batch);
  Tensor x0 = bench.fakes(batch, 0);
  x0.view({-1})[7] = std::nan("");
  Metrics metrics;
  const GanBatch on{.batch = batch, .conditions = conditions, .rung = 1, .at = {.step = 6, .epoch = 0, .seed = 3}};
  EXPECT_THAT(message_of<NumericError>([&] { bench.gan->generator_turn(x0, on, metrics); }),
              HasSubstr("(step 6, rung 1); not finite on the way: the student's x0"));
  EXPECT_THAT(message_of<NumericError>([&] { bench.gan->critic_turn(x0, {}, on, true, metrics); }),
              HasSubstr("gan: the critic's loss is not finite (step 6, rung 1); not finite on the way: the student's pictures, logits of the fakes"));
}

TEST_F(FeatureGanTest, ErrorsByName) {
  const auto said = [&](const FeatureGanConfig& c, const GanSetting& s = {}, const std::filesystem::path& teacher = {}) {
    return message_of([&] { GanBench bench(c, s, nullptr, teacher); });
  };
  FeatureGanConfig c = config();
  c.crop.size = 9;
  EXPECT_THAT(said(c), HasSubstr("discriminator crop of 9 x 9 latents is larger than the image of 8 x 8"));
  EXPECT_THAT(said(config("nowhere")), HasSubstr("no such folder; train features with configs/distill/dino.yaml"));
  std::filesystem::create_directories(folder_.path() / "empty");
  write_json(folder_.path() / "empty" / "model_index.json", Json::parse(R"({"_class_name": "VQPipeline"})"));
  EXPECT_THAT(said(config("empty")), HasSubstr("no encoder in it"));
  c = config(), c.blocks = {0, 2};
  EXPECT_THAT(said(c), HasSubstr("stage 2 is not one of 0 to 1"));
  c = config(), c.rung_weights = {1, 2, 3};
  EXPECT_THAT(said(c), HasSubstr("gan.rung_weights: 3 weights for 2 rungs"));
  c = config(), c.side = 32;
  EXPECT_THAT(said(c), HasSubstr("reads images of 16 x 16, its side is 32"));
  c = config(), c.condition = GanCondition::pooled;
  EXPECT_THAT(said(c), HasSubstr("gan.condition: pooled, but"));
  c = config(), c.heads.norm_groups = 3;
  EXPECT_THAT(said(c), HasSubstr("does not divide into 3 groups"));
  c = config(), c.real_share = 0.5;
  testing::write_teacher_file(folder_.path() / "large.h5", {1, 2}, 32);
  c.teacher_images = (folder_.path() / "large.h5").string();
  EXPECT_THAT(said(c), HasSubstr("holds images of 1x32x32 (channels x height x width), this run's are 1x16x16"));
  c.teacher_images = (folder_.path() / "none.h5").string();
  EXPECT_THAT(said(c), ::testing::AllOf(HasSubstr("no such file; make it with `fewstep data teacher CONFIG --model DIR --out "), HasSubstr("none.h5 --count")));
  c = config(), c.real_share = 0.5, c.any_teacher = false;
  EXPECT_THAT(said(c, {}, folder_.path() / "conv"), ::testing::AllOf(HasSubstr("was made by runs/other (weights 0123456789abcdef), the teacher of this run is"),
                                                                       HasSubstr("gan.any_teacher: true")));
}

TEST_F(FeatureGanTest, ADinov2FolderItselfIsTaken) {
  FeatureGanConfig c = config("vit/encoder");
  c.side = 8, c.blocks = {2, 4};
  GanBench bench(c);
  EXPECT_THAT(bench.gan->description(), HasSubstr("DINOv2"));
  EXPECT_EQ(bench.gan->heads().config().channels, (std::vector<int64_t>{16, 16}));
  // 5 tokens of 16, 4 blocks: 2 x 4 x (5 x (4 + 4) x 256 + 2 x 25 x 16), and the patches.
  EXPECT_DOUBLE_EQ(bench.gan->feature_flops(), 2.0 * (4 * (5 * 8 * 256 + 2 * 25 * 16) + 5 * 3 * 16 * 16));
}

}  // namespace
}  // namespace fewstep
