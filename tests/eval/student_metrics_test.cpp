// What few-step students are judged by: patches, distance to the teacher, variety, a discriminator's own features, cost. Closed
// forms first, then one whole evaluation of a small untrained diffusion model.
#include "eval/student_metrics.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "datasets/fashion_attributes.h"
#include "eval/cost.h"
#include "eval/diversity.h"
#include "eval/html.h"
#include "eval/in_loop.h"
#include "eval/latency.h"
#include "eval/patch_distance.h"
#include "eval/runner.h"
#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/json.h"
#include "src/config/config.h"
#include "src/models/conv_encoder.h"
#include "src/models/dinov2.h"
#include "src/models/model.h"
#include "src/pipelines/conditioner_class.h"
#include "src/pipelines/diffusion_pipeline.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/support/message_of.h"
#include "tests/support/scratch.h"

namespace fewstep::eval {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

EncoderIdentity named(const std::string& name, char digit) { return {name, std::string(64, digit)}; }

// Features of a picture: mean and mean square of its grey levels.
class Levels : public ImageEncoder {
 public:
  Encoded encode(const Tensor& images) const override { return encode_prepared(images.to(at::kFloat)); }
  Tensor prepare(const Tensor& image) const override { return image.to(at::kFloat).slice(1, 0, 4).slice(2, 0, 4); }
  Encoded encode_prepared(const Tensor& batch) const override {
    const Tensor x = batch.to(at::kFloat);
    return {at::stack({x.mean({1, 2, 3}), x.square().mean({1, 2, 3}) / 100}, 1), {}};
  }
  EncoderIdentity identity() const override { return named("levels", 'a'); }
};

Tensor pictures(int64_t count, int64_t side, uint64_t seed) {
  return (normal_by_id(at::arange(count), {1, side, side}, seed, Stream::eval, 0) * 40 + 120).clamp(0, 255).to(at::kByte);
}

std::map<std::string, Value> result_of(Metric& metric, const Tensor& images, const std::vector<std::string>& captions = {},
                                       const Tensor& features = {}) {
  for (int64_t i = 0; i < images.size(0); i += 7) {
    const int64_t end = std::min<int64_t>(i + 7, images.size(0));
    EvalBatch batch{.images = images.slice(0, i, end), .captions = {}, .labels = {}, .features = {}, .logits = {}};
    if (!captions.empty()) batch.captions = {captions.begin() + i, captions.begin() + end};
    if (features.defined()) batch.features = features.slice(0, i, end);
    metric.add(batch);
  }
  return metric.result();
}

FrechetReference reference_of_rows(const Tensor& rows) {
  FeatureStatistics statistics;
  statistics.add(rows);
  return FrechetReference(statistics);
}

TEST(PatchFd, IsTheDistanceOfTheFourQuartersTakenAsImages) {
  const Levels levels;
  const PatchEncoder patches(levels, {.side = 4, .grid = true});
  const Tensor real = pictures(60, 8, 1), judged = pictures(40, 8, 2);
  const auto quarters = [](const Tensor& x) {
    return at::cat({x.slice(2, 0, 4).slice(3, 0, 4), x.slice(2, 0, 4).slice(3, 4, 8), x.slice(2, 4, 8).slice(3, 0, 4), x.slice(2, 4, 8).slice(3, 4, 8)});
  };
  const FrechetReference reference = reference_of_rows(levels.features(quarters(real)));
  const MetricContext context{.patch = &patches, .patch_reference = &reference, .patch_side = 4};
  const auto values = result_of(*make_patch_fd(context), judged);
  const Value v = values.at("patch_FD[levels@aaaaaaaa,grid=4]");
  EXPECT_NEAR(v.value, frechet_distance_of_features(levels.features(quarters(real)), levels.features(quarters(judged))), 1e-6);
  EXPECT_EQ(v.n, 160);  // patches
  EXPECT_GT(v.ci95, 0);
  EXPECT_THAT(message_of<ConfigError>([] { make_patch_fd({}); }), HasSubstr("'patch_judge'"));
}

TEST(TeacherFd, OfAMeanThatMovedIsItsSquareAndSaysSo) {
  const Levels levels;
  const Tensor features = normal_by_id(at::arange(400), {3}, 4, Stream::eval, 0);
  const FrechetReference teacher = reference_of_rows(features);
  const MetricContext context{.judge = &levels, .teacher_reference = &teacher};
  const Tensor none = at::zeros({400, 1, 2, 2}, at::kByte);
  EXPECT_NEAR(result_of(*make_teacher_fd(context), none, {}, features).at("FD_teacher[levels@aaaaaaaa]").value, 0, 1e-9);
  const Tensor moved = features + at::tensor({2.f, 0.f, 1.f});
  EXPECT_NEAR(result_of(*make_teacher_fd(context), none, {}, moved).at("FD_teacher[levels@aaaaaaaa]").value, 5, 1e-4);
  EXPECT_THAT(message_of<ConfigError>([&] { make_teacher_fd({.judge = &levels}); }), HasSubstr("'teacher.model'"));
}

TEST(DiversityOfASet, GroupsByCaptionAndIsNothingWithoutRepeats) {
  const Levels levels;
  const MetricContext context{.judge = &levels};
  // Two captions: one whose images have features at a right angle, one whose images are alike; a third that stands alone.
  const Tensor features = at::tensor({1.f, 0.f, 1.f, 1.f, 0.f, 1.f, 2.f, 2.f, 5.f, 0.f}).view({5, 2});
  const Tensor none = at::zeros({5, 1, 2, 2}, at::kByte);
  const Value v = result_of(*make_diversity(context), none, {"a", "b", "a", "b", "c"}, features).at("diversity[levels@aaaaaaaa]");
  EXPECT_NEAR(v.value, 0.5, 1e-6);
  EXPECT_EQ(v.n, 2);
  EXPECT_TRUE(result_of(*make_diversity(context), none, {"a", "b", "c", "d", "e"}, features).empty());
}

TEST(InLoop, IsNamedApartAndNoJudgeMayBeTheJury) {
  const testing::ScratchFolder folder("in-loop");
  models::Dinov2Config c;
  c.hidden_size = 8, c.num_hidden_layers = 1, c.num_attention_heads = 2, c.image_size = 8, c.patch_size = 4;
  models::Dinov2Model vit(c);
  vit.initialise(1);
  models::save_model(folder / "features", vit, c.to_json());
  const EncoderIdentity stranger = named("judge", 'b');
  const auto encoder = load_in_loop_encoder(folder / "features", at::kCPU, {&stranger, 1});
  EXPECT_EQ(encoder->identity().name, "in-loop");
  const Tensor images = pictures(70, 9, 3);  // brought to whole patches, 8 x 8
  const Tensor features = encoder->features(images);
  EXPECT_EQ(features.sizes(), at::IntArrayRef({70, 8}));
  EXPECT_LT((features.slice(0, 0, 3) - encoder->features(images.slice(0, 0, 3))).abs().max().item<float>(), 1e-5);

  const FrechetReference reference = reference_of_rows(features);
  const auto values = result_of(*make_in_loop_fd({.in_loop = encoder.get(), .in_loop_reference = &reference}), images);
  const std::string hash = encoder->identity().sha256.substr(0, 8), name = "in_loop_FD[in-loop@" + hash + "]";
  ASSERT_EQ(values.size(), 1u);
  EXPECT_NEAR(values.at(name).value, 0, 1e-6);
  EXPECT_TRUE(is_in_loop_metric(name));
  EXPECT_FALSE(is_in_loop_metric("FD[judge@1a2b3c4d]"));

  Results results;
  results.rows = {{.label = "samples", .metrics = {{name, {.value = 2.5, .n = 70}}, {"cut_rate", {.value = 0.5, .n = 70}}}}};
  const std::string table = results_table(results);
  EXPECT_THAT(table, HasSubstr("| images | cut_rate |\n"));  // not among the judges' numbers
  EXPECT_THAT(table, HasSubstr("- [in-loop] samples: " + name));

  const EncoderIdentity same{"tower", encoder->identity().sha256};
  const std::string refusal = message_of<ConfigError>([&] { load_in_loop_encoder(folder / "features", at::kCPU, {&same, 1}); });
  for (const std::string& part : {std::string("in_loop"), std::string("'tower'"), hash}) EXPECT_THAT(refusal, HasSubstr(part));
  EXPECT_THROW(check_metric_name("in_loop_FD", {}), ConfigError);
  EXPECT_THROW(check_metric_name("FD_teacher", {}), ConfigError);
}

TEST(Cost, TrainingFlopsAreThoseOfTheLogUpToACheckpoint) {
  const testing::ScratchFolder folder("cost");
  make_directories(folder / "run/checkpoints/step-000000200");
  // 2 s at 3, 4 s at 5; step 200 was written twice by a resumed run, and the last line is torn.
  write_text_atomic(folder / "run/metrics.jsonl",
                    R"({"step":100,"seconds":2,"tflops_per_second":3,"group":"train"})"
                    "\n"
                    R"({"step":200,"seconds":9,"tflops_per_second":5,"group":"train"})"
                    "\n"
                    R"({"step":200,"seconds":6,"tflops_per_second":5,"group":"train"})"
                    "\n"
                    R"({"step":200,"seconds":6,"group":"validation","loss":1})"
                    "\n"
                    R"({"step":300,"seconds":7,"tflops_per_second":2,"group":"train"})"
                    "\n{\"ste");
  EXPECT_NEAR(training_flops(folder / "run") * 1e-12, 6 + 20 + 2, 1e-9);
  EXPECT_NEAR(training_flops(folder / "run/checkpoints/step-000000200") * 1e-12, 26, 1e-9);
  EXPECT_NEAR(training_flops((folder / "run").string() + "/") * 1e-12, 28, 1e-9);
  EXPECT_THAT(message_of<DataError>([&] { training_flops(folder / "nowhere"); }), HasSubstr("nowhere/metrics.jsonl"));
  write_text_atomic(folder / "run/metrics.jsonl", "{\"step\":100,\"seconds\":2}\n");
  EXPECT_THAT(message_of<DataError>([&] { training_flops(folder / "run"); }), HasSubstr("does not count"));
}

TEST(Latency, MediansHaveOrderStatisticsAsInterval) {
  std::vector<double> seconds;
  for (int i = 100; i > 0; --i) seconds.push_back(0.001 * i);
  const Value v = median_ms(seconds);
  EXPECT_NEAR(v.value, 50, 1e-9);
  EXPECT_NEAR(v.ci95, 9.8, 0.5);  // ranks 49.5 +- 9.8
  EXPECT_EQ(v.n, 100);
  EXPECT_EQ(median_ms({0.5}).ci95, 0);
}

TEST(Floors, APatchDistanceHasOneAndADistanceToTheTeacherHasNone) {
  std::vector<ResultRow> rows(1);
  ResultRow real;
  for (const char* name : {"patch_FD[patch@1a2b3c4d,grid=16]", "FD_teacher[judge@1a2b3c4d]", "in_loop_FD[in-loop@1a2b3c4d]"})
    rows[0].metrics[name] = {.value = 2, .n = 10}, real.metrics[name] = {.value = 1, .n = 10};
  attach_floors(rows, real);
  EXPECT_EQ(rows[0].metrics["patch_FD[patch@1a2b3c4d,grid=16]"].floor, 1);
  EXPECT_EQ(rows[0].metrics["in_loop_FD[in-loop@1a2b3c4d]"].floor, 1);
  EXPECT_TRUE(std::isnan(rows[0].metrics["FD_teacher[judge@1a2b3c4d]"].floor));
}

TEST(StudentConfig, AsksForWhatAMetricNeeds) {
  const std::string errors = message_of<ConfigError>([] {
    config::parse<EvalConfig>("name: e\ndata: {kind: fashion_mnist}\nsets: [real]\nmetrics: [patch_fd, fd_teacher, in_loop_fd, cost]\n");
  });
  for (const char* part : {"'patch_judge'", "'teacher.model'", "'in_loop'", "cost needs 'model'"}) EXPECT_THAT(errors, HasSubstr(part));
}

// --- a whole evaluation

void write_conv_encoder(const fs::path& folder, int64_t side, uint64_t seed) {
  models::ConvEncoderConfig c;
  c.image_size = side, c.channels = {4, 8}, c.kernels = {3, 3}, c.strides = {2, 2}, c.blocks = {1, 1}, c.norm_groups = 4;
  c.feature_stages = {0, 1}, c.embedding_dim = 4;
  models::ConvEncoder encoder(c);
  encoder.initialise(seed);
  models::save_model(folder, encoder, c.to_json());
}

double write_diffusion_model(const fs::path& folder) {
  pipelines::ClassConditionerConfig conditioning;
  conditioning.dim = 8;
  const auto conditioner = conditioning.build({.class_names = {fashion_class_names().begin(), fashion_class_names().end()}, .train_tokenizer = {}});
  const auto latents = pipelines::latent_space_kinds()[1].make();  // pixel_unshuffle
  config::read_string("{normalise: false}", "<test>",
                      [](config::Visitor& v, void* p) { static_cast<pipelines::LatentSpaceConfig*>(p)->describe(v); }, latents.get());
  models::UNet2DConfig c;
  c.in_channels = c.out_channels = 4, c.sample_size = 16, c.block_out_channels = {4, 8}, c.layers_per_block = {1};
  c.attention_head_dim = {2}, c.norm_num_groups = 2, c.addition_time_embed_dim = 4;
  c.down_block_types = {"DownBlock2D", "CrossAttnDownBlock2D"}, c.up_block_types = {"CrossAttnUpBlock2D", "UpBlock2D"};
  pipelines::fit_conditioning(c, *conditioner);
  models::UNet2DConditionModel network(c);
  network.initialise(1);
  TensorMap state;
  for (const NamedTensor& p : network.state()) state[p.name] = p.tensor.detach();
  diffusion::ScheduleConfig flow;
  flow.kind = diffusion::ScheduleKind::flow;
  const std::unique_ptr<pipelines::LatentSpace> space = latents->build(1, {});
  pipelines::save_diffusion_model(folder, {c, state, *conditioner, *space, diffusion::Schedule(flow), diffusion::Prediction::flow, {}});
  return network.forward_flops(16, 16, conditioner->context_length());
}

TEST(StudentEvaluation, HasEveryNumberAndKeepsTheTeachersImages) {
  const testing::ScratchFolder folder("student-evaluation");
  const double flops = write_diffusion_model(folder / "model");
  write_conv_encoder(folder / "judge", 32, 3), write_conv_encoder(folder / "patch", 16, 4), write_conv_encoder(folder / "jury", 32, 5);
  make_directories(folder / "run");
  write_text_atomic(folder / "run/metrics.jsonl", "{\"step\":1,\"seconds\":2,\"tflops_per_second\":3,\"group\":\"train\"}\n");
  const auto evaluate = [&](const std::string& name, const std::string& more) {
    auto c = config::parse<EvalConfig>(fmt::format(
        "name: {0}\nout: {1}/{0}\nmodel: {1}/model\njudge: {1}/judge\npatch_judge: {1}/patch\nin_loop: {1}/jury\n"
        "data: {{kind: fashion_mnist}}\nnum_samples: 200\nreference_samples: 60\nreport_prompts: 0\n"
        "metrics: [fd, patch_fd, fd_teacher, diversity, in_loop_fd, cost]\nbaseline_nfe: 100\ntraining_runs: [{1}/run]\n"
        "teacher: {{model: {1}/model, images: {1}/teacher, generate: {{guidance: 2, sampling_steps: 3, unconditional: all}}}}\n"
        "generate: {{sampling_steps: 2, batch_size: 100}}\n{2}",
        name, folder.path().string(), more));
    return run_evaluation(c, at::kCPU);
  };
  const Results first = evaluate("a", "latency: {runs: 3, warmup: 0, batch_sizes: [1, 4]}\n");
  const auto& values = first.rows[1].metrics;
  EXPECT_EQ(first.rows[1].nfe, 2);
  EXPECT_EQ(values.at("nfe_compression").value, 50);
  EXPECT_NEAR(values.at("gflop_per_image").value, 2e-9 * flops, 1e-12);
  EXPECT_NEAR(values.at("training_tflop").value, 6, 1e-12);
  for (const char* name : {"latency_ms[batch=1]", "latency_ms[batch=4]", "speed_up[teacher]"}) {
    ASSERT_TRUE(values.contains(name)) << name;
    EXPECT_GT(values.at(name).value, 0) << name;
  }
  EXPECT_EQ(first.rows[1].latency.batch, 1);
  int found = 0;
  for (const auto& [name, value] : values)
    for (const char* wanted : {"patch_FD[patch@", "FD_teacher[judge@", "diversity[judge@", "in_loop_FD[in-loop@"})
      if (name.starts_with(wanted) && std::isfinite(value.value)) ++found;
  EXPECT_EQ(found, 4);
  const std::string report = read_text(folder / "a/report.html");
  EXPECT_EQ(check_balanced(report), "");
  EXPECT_THAT(report, HasSubstr("[in-loop]"));
  EXPECT_THAT(report, HasSubstr("nfe_compression"));

  // The teacher's images are found again, and another teacher's are not taken for them.
  const auto stamp = fs::last_write_time(folder / "teacher/000000000000.png");
  const Results second = evaluate("b", "");
  EXPECT_EQ(fs::last_write_time(folder / "teacher/000000000000.png"), stamp);
  for (const auto& [name, value] : second.rows[1].metrics)
    if (name.starts_with("FD_teacher")) {
      EXPECT_EQ(value.value, values.at(name).value);
    }
  EXPECT_THAT(message_of<ConfigError>([&] { evaluate("c", "seed: 9\n"); }), HasSubstr("teacher.images"));  // other captions
}

}  // namespace
}  // namespace fewstep::eval
