// One cycle of DMD2 (a student's turn and two of the fake score) on a small UNet, the GAN's backward in one graph and in two stages,
// and few-step latency against the teacher's: our side of tools/bench_distillation.sh, driven line by line over standard input
// (--serve). Every command answers with one JSON line.
//   load DIR        config.json, weights, and inputs.safetensors (x_T, context, null, and noise and t of every turn)
//   losses          student's pseudo-loss and fake score's loss on them, for the check before any timing
//   cycle N         N cycles -> wall and CPU seconds of each
//   trainer FILE N  the same by the trainer itself, captions, text encoder, moving average and monitors included, after a warm-up
//   gan             peak bytes of tensors beyond those before: one graph; two stages beside the student's graph, or with it made again, whole
//                   or decoded 8 of 32 images at a time; and the largest relative difference of the student's gradients
//   latency DIR B N N calls of a pipeline in 2 steps and in 50 guided ones, in turns, at batch B
#include <c10/util/ThreadLocalDebugInfo.h>
#include <fmt/format.h>

#include <ctime>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "datasets/loader.h"
#include "src/base/error.h"
#include "src/config/config.h"
#include "src/diffusion/distribution_matching.h"
#include "src/io/safetensors.h"
#include "src/models/autoencoder_kl.h"
#include "src/models/dinov2.h"
#include "src/models/feature_discriminator.h"
#include "src/models/model.h"
#include "src/models/unet2d.h"
#include "src/nn/gradients.h"
#include "src/nn/module.h"
#include "src/pipelines/pipeline.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/optim.h"
#include "trainers/loop.h"
#include "trainers/two_stage_backward.h"

namespace fewstep {
namespace {

using diffusion::Prediction;

constexpr double kRung = 0.7, kScale = 1.5, kTimesteps = 1000;  // flow: levels 1 and 0.7, the teacher's guidance

double clock_of(clockid_t id) {
  timespec t{};
  clock_gettime(id, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

template <class F>
Json timed(int64_t count, F run) {
  Json wall = Json::array(), cpu = Json::array();
  for (int64_t i = 0; i < count; ++i) {
    const double w = clock_of(CLOCK_MONOTONIC), c = clock_of(CLOCK_PROCESS_CPUTIME_ID);
    run();
    wall.push_back(clock_of(CLOCK_MONOTONIC) - w), cpu.push_back(clock_of(CLOCK_PROCESS_CPUTIME_ID) - c);
  }
  return {{"wall", wall}, {"cpu", cpu}};
}

// Bytes of tensors that this thread allocates and frees.
struct PeakBytes : c10::MemoryReportingInfoBase {
  int64_t alive = 0, peak = 0;
  void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override {
    alive += size;
    peak = std::max(peak, alive);
  }
  bool memoryProfilingEnabled() const override { return true; }
};

struct Net {
  std::unique_ptr<nn::Module> module;
  models::UNet2DConditionModel* unet = nullptr;
  std::unique_ptr<AdamW> optimizer = {};

  void load(const std::string& folder) {
    module = models::load_model(folder);
    unet = dynamic_cast<models::UNet2DConditionModel*>(module.get());
    if (!unet) fail<ConfigError>("{}: no UNet2DConditionModel", folder);
    unet->requires_grad(false);
  }
  void train(double lr, double ema) {
    OptimizerConfig c;
    c.lr = lr, c.beta1 = 0, c.beta2 = 0.999, c.weight_decay = 0.01, c.clip_norm = 10, c.ema_decay = ema;
    unet->requires_grad(true);
    unet->train();
    optimizer = std::make_unique<AdamW>(unet->parameters(), c);
  }
  Tensor operator()(const Tensor& x, const Tensor& t, const Tensor& context) const {
    return (*unet)(x, t, {.context = context, .pooled = {}, .numbers = {}, .number_mask = {}});
  }
};

class Cycle {
 public:
  Json load(const std::string& folder) {
    in_.clear();
    for (auto& [name, t] : io::Safetensors(folder + "/inputs.safetensors").all()) in_[name] = t.clone();
    for (Net* net : {&teacher_, &student_, &fake_}) net->load(folder);
    {  // a fake score that has learnt something: equal to the teacher, the student's loss would be rounding
      const NoGrad no_grad;
      for (const NamedTensor& p : fake_.unet->parameters()) p.tensor.detach().mul_(1.05);
    }
    student_.train(2e-5, 0.99), fake_.train(4e-5, 0);
    const Tensor& x = in("x_T");
    return {{"parameters", teacher_.unet->parameter_count()},
            {"forward_flops", static_cast<double>(x.size(0)) * teacher_.unet->forward_flops(x.size(2), x.size(3), in("context").size(1))}};
  }
  Json losses() const {
    const NoGrad no_grad;
    const Tensor x0 = generate(in("x_T"), true);
    return {{"student", student_loss(x0).item<double>()}, {"fake", fake_loss(x0, 0).item<double>()}};
  }
  void run() {
    const Tensor x0 = generate(in("x_T"), true);
    student_.optimizer->zero_grad();
    student_loss(x0).backward();
    student_.optimizer->step(2e-5, student_.optimizer->grad_norm());
    student_.optimizer->update_ema();
    critic(x0.detach(), 0);
    const Tensor other = [&] {  // the second iteration of the cycle: the fake score alone, on new samples
      const NoGrad no_grad;
      return generate(in("x_T2"), true);
    }();
    critic(other, 1);
  }

 private:
  const Tensor& in(const std::string& name) const { return in_.at(name); }
  static Tensor each(double value, const Tensor& like) { return at::full({like.size(0)}, value, like.options()); }
  static Tensor column(const Tensor& v) { return v.view({-1, 1, 1, 1}); }

  // x0 at the second rung: the first step without gradients, its own noise used again (an ode student).
  Tensor generate(const Tensor& x_T, bool grad) const {
    Tensor x;
    {
      const NoGrad no_grad;
      const Tensor x0 = x_T - student_(x_T, each(kTimesteps, x_T), in("context"));
      x = (1 - kRung) * x0 + kRung * x_T;
    }
    const at::AutoGradMode mode(grad && at::GradMode::is_enabled());
    return x - kRung * student_(x, each(kRung * kTimesteps, x), in("context"));
  }
  Tensor student_loss(const Tensor& x0) const {
    const Tensor s = in("t"), alpha = 1 - s;
    Tensor gradient;
    {
      const NoGrad no_grad;
      const Tensor x_t = column(alpha) * x0.detach() + column(s) * in("noise"), t = s * kTimesteps;
      const Tensor fake = diffusion::predicted_x0(Prediction::flow, fake_(x_t, t, in("context")), x_t, alpha, s);
      const auto both = teacher_(at::cat({x_t, x_t}), at::cat({t, t}), at::cat({in("context"), in("null")})).chunk(2);
      const Tensor real = diffusion::guided_x0(Prediction::flow, both[0], both[1], kScale, x_t, alpha, s);
      gradient = diffusion::reverse_kl_gradient(x0, fake, real);
    }
    return diffusion::pseudo_loss(x0, gradient).mean();
  }
  Tensor fake_loss(const Tensor& x0, int turn) const {
    const Tensor s = in(fmt::format("critic_t{}", turn)), noise = in(fmt::format("critic_noise{}", turn)), alpha = 1 - s;
    const Tensor x_t = column(alpha) * x0 + column(s) * noise;
    return diffusion::fake_score_loss(Prediction::flow, fake_(x_t, s * kTimesteps, in("context")), x0, noise, alpha, s).mean();
  }
  void critic(const Tensor& x0, int turn) {
    fake_.optimizer->zero_grad();
    fake_loss(x0, turn).backward();
    fake_.optimizer->step(4e-5, fake_.optimizer->grad_norm());
  }
  TensorMap in_;
  Net teacher_, student_, fake_;
};

// --- the GAN's backward: student -> decoder of an autoencoder -> DINOv2-form features -> heads, at the sizes of the tiny setting

struct GanCase {
  std::unique_ptr<models::UNet2DConditionModel> student;
  std::unique_ptr<models::AutoencoderKL> vae;
  std::unique_ptr<models::Dinov2Model> features;
  std::unique_ptr<models::FeatureDiscriminator> heads;
  Tensor x, t, ids;

  GanCase() {
    models::UNet2DConfig unet;
    unet.block_out_channels = {48, 72}, unet.layers_per_block = {1}, unet.attention_head_dim = {4}, unet.norm_num_groups = 8;
    unet.down_block_types = {"DownBlock2D", "DownBlock2D"}, unet.up_block_types = {"UpBlock2D", "UpBlock2D"}, unet.mid_block_type = "";
    student = std::make_unique<models::UNet2DConditionModel>(unet);
    models::AutoencoderKlConfig kl;
    kl.in_channels = kl.out_channels = 1, kl.block_out_channels = {24, 48}, kl.layers_per_block = 1, kl.norm_num_groups = 8;
    vae = std::make_unique<models::AutoencoderKL>(kl);
    models::Dinov2Config dino;
    dino.hidden_size = 96, dino.num_hidden_layers = 4, dino.num_attention_heads = 4, dino.image_size = 32, dino.patch_size = 4;
    features = std::make_unique<models::Dinov2Model>(dino);
    models::FeatureDiscriminatorConfig h;
    h.channels = {96, 96, 96, 96, 96};
    heads = std::make_unique<models::FeatureDiscriminator>(h);
    uint64_t seed = 1;
    for (nn::Module* module : {static_cast<nn::Module*>(student.get()), static_cast<nn::Module*>(vae.get()),
                               static_cast<nn::Module*>(features.get()), static_cast<nn::Module*>(heads.get())}) {
      module->initialise(seed++);
      module->train(false);
      if (module != student.get()) module->requires_grad(false);
    }
    // The last convolution of a new UNet is zero: its gradient alone would be compared.
    const NoGrad no_grad;
    for (const NamedTensor& p : student->parameters())
      if (p.name.starts_with("conv_out")) p.tensor.detach().normal_(0, 0.05);
    x = at::randn({32, 4, 16, 16}), t = at::full({32}, 700.0), ids = at::arange(32);
  }
  Tensor sample() const { return (*student)(x, t, {.context = {}, .pooled = {}, .numbers = {}, .number_mask = {}}); }
  Tensor decode(const Tensor& z) const { return vae->decode(z); }
  Tensor loss(const Tensor& images) const {
    const models::FeatureTapOptions taps{.blocks = {0, 1, 2, 3, 4}, .side = 0, .imagenet = true};
    return -(*heads)(models::feature_taps(*features, images, taps)).mean();
  }
  std::vector<Tensor> gradients(const Tensor& value) const {
    std::vector<Tensor> weights;
    for (const NamedTensor& p : student->parameters()) weights.push_back(p.tensor);
    return nn::gradients(value, weights, false);
  }
};

Json gan_memory() {
  const GanCase gan;
  std::vector<Tensor> expected;
  double gap = 0;
  const auto peak_of = [&](auto run) {
    const auto bytes = std::make_shared<PeakBytes>();
    std::vector<Tensor> got;
    {
      const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, bytes);
      got = run();
    }
    if (expected.empty()) expected = got;
    double difference = 0, size = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      difference = std::max(difference, (got[i] - expected[i]).abs().max().item<double>());
      size = std::max(size, expected[i].abs().max().item<double>());
    }
    gap = std::max(gap, difference / size);
    return bytes->peak;
  };
  const auto stages = [&](const Tensor& z, int64_t part) {
    return pixel_gradient(z, gan.ids, [&](const Tensor& l) { return gan.decode(l); }, [&](const Tensor& i) { return gan.loss(i); },
                          {.decode_part = part}).gradient;
  };
  const auto one = peak_of([&] { return gan.gradients(gan.loss(gan.decode(gan.sample()))); });
  const auto beside = [&](int64_t part) {
    return peak_of([&] {
      const Tensor x0 = gan.sample();
      return gan.gradients(injected_gradient(x0, stages(x0, part)));
    });
  };
  const auto again = [&](int64_t part) {
    return peak_of([&] {
      const Tensor gradient = [&] {
        const NoGrad no_grad;
        return stages(gan.sample(), part);
      }();
      return gan.gradients(injected_gradient(gan.sample(), gradient));
    });
  };
  Json out = {{"one_graph", one}};
  out["beside"] = beside(0), out["beside_in_parts"] = beside(8), out["again"] = again(0), out["again_in_parts"] = again(8);
  out["gap"] = gap;
  return out;
}

Json trainer_cycles(const std::string& file, int64_t count) {
  auto config = config::load<RunConfig>(file, {});
  const auto world = dist::World::single(at::kCPU);
  const auto data = config.data->build(Split::train);
  const auto trainer = config.trainer->build({.world = *world, .seed = 1, .total_steps = 1 << 20, .horizon = 1 << 20,
                                              .batch_size = config.loop.batch_size, .accumulate = 1, .train = *data, .validation = nullptr});
  int64_t step = 1;  // not a multiple of the monitors' interval
  const auto cycle = [&] {  // two iterations: both turns, then the fake score's alone
    for (int i = 0; i < 2; ++i, ++step)
      trainer->step(load_range(*data, (step * config.loop.batch_size) % 4096, (step * config.loop.batch_size) % 4096 + config.loop.batch_size, 1),
                    {.step = step, .epoch = 0, .seed = 1});
  };
  for (int i = 0; i < 3; ++i) cycle();
  return timed(count, cycle);
}

Json latencies(const std::string& folder, int64_t batch, int64_t count) {
  const auto pipeline = pipelines::load(folder, at::kCPU);
  pipelines::GenerateOptions few, many;
  few.diffusion.steps = 2, many.diffusion.steps = 50, many.guidance = kScale;
  few.batch_size = many.batch_size = batch;
  const std::vector<std::string> prompts(static_cast<size_t>(batch), "a dark long dress");
  int64_t id = 0;
  const auto call = [&](const pipelines::GenerateOptions& o) { return timed(1, [&] { pipeline->generate(prompts, 1, id += batch, o); })["wall"][0].get<double>(); };
  call(few), call(many), call(few);
  Json a = Json::array(), b = Json::array();
  for (int64_t i = 0; i < count; ++i) {
    if (i % 2 == 0) a.push_back(call(few)), b.push_back(call(many));
    else b.push_back(call(many)), a.push_back(call(few));
  }
  return {{"two_steps", a}, {"teacher", b}};
}

Json answer(Cycle& cycle, const std::string& line) {
  std::istringstream in(line);
  std::string command, folder;
  int64_t a = 1, b = 1;
  in >> command;
  if (command == "load" && in >> folder) return cycle.load(folder);
  if (command == "losses") return cycle.losses();
  if (command == "cycle" && in >> a) return timed(a, [&] { cycle.run(); });
  if (command == "trainer" && in >> folder >> a) return trainer_cycles(folder, a);
  if (command == "gan") return gan_memory();
  if (command == "latency" && in >> folder >> a >> b) return latencies(folder, a, b);
  fail<ConfigError>("'{}': load DIR, losses, cycle N, trainer FILE N, gan, latency DIR BATCH N", line);
}

}  // namespace
}  // namespace fewstep

int main() {
  fewstep::Cycle cycle;
  try {
    for (std::string line; std::getline(std::cin, line);) std::cout << fewstep::answer(cycle, line).dump() << std::endl;
  } catch (const fewstep::Error& e) {
    fmt::print(stderr, "bench_distillation: {}\n", e.what());
    return e.exit_code();
  }
  return 0;
}
