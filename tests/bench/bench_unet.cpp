// The UNet of latent diffusion: forward pass, training step with and without recompute, and its fused operators against the
// plain ones. Without arguments a Google Benchmark program; with --serve, our side of tools/bench_vs_diffusers.sh, driven line
// by line over standard input. Every command answers with one JSON line.
//   load DIR      config.json, weights, and inputs.safetensors (sample, timestep, encoder_hidden_states, text_embeds, time_ids, target)
//   loss          mean squared error on them, for the check before any timing
//   train N R     N steps: forward, backward, clip, AdamW, with recompute when R is 1 -> wall and CPU seconds of each
//   forward N     N passes without gradients -> the same
//   activations R bytes of tensors alive after the forward pass and at most during the step, beyond those before it
//   profile N     where N training steps go
//   memory        peak resident bytes of this process so far
#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <fmt/format.h>

#include <chrono>
#include <ctime>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/text.h"
#include "src/io/safetensors.h"
#include "src/models/model.h"
#include "src/models/unet2d.h"
#include "src/nn/fused.h"
#include "src/nn/fused_norm.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/optim.h"

namespace fewstep {
namespace {

struct Seconds {
  double wall = 0, cpu = 0;
};

class Stopwatch {
 public:
  Seconds read() const { return {now(CLOCK_MONOTONIC) - wall_, now(CLOCK_PROCESS_CPUTIME_ID) - cpu_}; }

 private:
  static double now(clockid_t id) {
    timespec t{};
    clock_gettime(id, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }
  double wall_ = now(CLOCK_MONOTONIC), cpu_ = now(CLOCK_PROCESS_CPUTIME_ID);
};

// Exact bytes of tensors that this thread allocates and frees; scratch of oneDNN is not among them.
struct TensorBytes : c10::MemoryReportingInfoBase {
  int64_t alive = 0, peak = 0;
  void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override {
    alive += size;
    peak = std::max(peak, alive);
  }
  bool memoryProfilingEnabled() const override { return true; }
};

// Of this program alone: getrusage's maximum survives exec and would be the parent's where that is larger.
int64_t peak_resident() {
  for (const std::string& line : split(read_text("/proc/self/status"), '\n'))
    if (line.starts_with("VmHWM:")) return std::stoll(line.substr(6)) * 1024;
  fail<DataError>("/proc/self/status has no VmHWM");
}

struct UnetCase {
  std::unique_ptr<nn::Module> module;
  models::UNet2DConditionModel* model = nullptr;
  TensorMap inputs;
  std::unique_ptr<AdamW> optimizer;

  Tensor forward() const {
    const models::UNetConditions conditions{.context = inputs.at("encoder_hidden_states"), .pooled = inputs.at("text_embeds"),
                                            .numbers = inputs.at("time_ids"), .number_mask = {}};
    return (*model)(inputs.at("sample"), inputs.at("timestep"), conditions);
  }
  Tensor loss() const { return at::mse_loss(forward(), inputs.at("target")); }
  void prepare() {
    if (optimizer) return;
    model->train();
    OptimizerConfig c;
    c.lr = 1e-5, c.weight_decay = 0.01, c.clip_norm = 1.0;
    optimizer = std::make_unique<AdamW>(model->parameters(), c);
  }
  double step() {
    optimizer->zero_grad();
    const Tensor value = loss();
    value.backward();
    optimizer->step(1e-5, optimizer->grad_norm());
    return value.item<double>();
  }
};

template <class F>
Json timed(int64_t count, F run) {
  Json wall = Json::array(), cpu = Json::array();
  for (int64_t i = 0; i < count; ++i) {
    const Stopwatch watch;
    run();
    const Seconds s = watch.read();
    wall.push_back(s.wall), cpu.push_back(s.cpu);
  }
  return {{"wall", wall}, {"cpu", cpu}};
}

class Server {
 public:
  Json answer(const std::string& line) {
    std::istringstream in(line);
    std::string command, folder;
    in >> command;
    if (command == "load") {
      in >> folder;
      return load(folder);
    }
    int64_t a = 1, b = 0;
    in >> a >> b;
    if (command == "loss") {
      const NoGrad no_grad;
      return {{"loss", case_.loss().item<double>()}};
    }
    if (command == "train") {
      case_.prepare();
      case_.model->set_recompute(b != 0);
      return timed(a, [&] { case_.step(); });
    }
    if (command == "forward") {
      const NoGrad no_grad;
      return timed(a, [&] { benchmark::DoNotOptimize(case_.forward()); });
    }
    if (command == "activations") return activations(a != 0);
    if (command == "profile") return profile(a);
    if (command == "memory") return {{"peak", peak_resident()}};
    fail<ConfigError>("unknown command '{}' (load, loss, train, forward, activations, profile, memory)", command);
  }

 private:
  Json load(const std::string& folder) {
    case_.module = models::load_model(folder);
    case_.model = dynamic_cast<models::UNet2DConditionModel*>(case_.module.get());
    case_.inputs.clear();
    for (auto& [name, t] : io::Safetensors(folder + "/inputs.safetensors").all()) case_.inputs[name] = t.clone();
    case_.optimizer.reset();
    const Tensor& sample = case_.inputs.at("sample");
    return {{"parameters", case_.model->parameter_count()}, {"threads", at::get_num_threads()},
            {"forward_flops", static_cast<double>(sample.size(0)) *
                                  case_.model->forward_flops(sample.size(2), sample.size(3), case_.inputs.at("encoder_hidden_states").size(1))}};
  }

  // Sections of a training step, each closed by reading the clock: operators run in order on the CPU.
  Json profile(int64_t steps) {
    case_.prepare();
    case_.model->set_recompute(false);
    case_.step();
    std::map<std::string, Seconds> sections;
    for (int64_t i = 0; i < steps; ++i) {
      Stopwatch watch;
      const auto close = [&](const char* name) {
        const Seconds s = watch.read();
        sections[name].wall += s.wall / static_cast<double>(steps), sections[name].cpu += s.cpu / static_cast<double>(steps);
        watch = Stopwatch();
      };
      case_.optimizer->zero_grad(), close("1 zero_grad");
      const Tensor value = case_.loss();
      close("2 forward");
      value.backward(), close("3 backward");
      const Tensor norm = case_.optimizer->grad_norm();
      close("4 grad norm");
      case_.optimizer->step(1e-5, norm), close("5 clip + AdamW");
    }
    Json out = Json::object();
    for (const auto& [name, s] : sections) out[name] = {{"wall", s.wall}, {"cpu", s.cpu}};
    return out;
  }

  Json activations(bool recompute) {
    case_.prepare();
    case_.model->set_recompute(recompute);
    case_.step();
    const auto bytes = std::make_shared<TensorBytes>();
    const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, bytes);
    case_.optimizer->zero_grad();
    const Tensor value = case_.loss();
    const int64_t kept = bytes->alive;
    value.backward();
    return {{"kept", kept}, {"peak", bytes->peak}};
  }
  UnetCase case_;
};

// --- Google Benchmark

UnetCase small_case() {
  models::UNet2DConfig c;
  c.block_out_channels = {64, 128}, c.layers_per_block = {1};
  c.down_block_types = {"DownBlock2D", "CrossAttnDownBlock2D"}, c.up_block_types = {"CrossAttnUpBlock2D", "UpBlock2D"};
  c.attention_head_dim = {1, 2}, c.cross_attention_dim = 64, c.use_linear_projection = true;
  c.addition_embed_type = "text_time", c.projection_class_embeddings_input_dim = 64 + 6 * 256;
  UnetCase out;
  out.module = std::make_unique<models::UNet2DConditionModel>(c);
  out.module->initialise(1);
  out.model = dynamic_cast<models::UNet2DConditionModel*>(out.module.get());
  out.inputs = {{"sample", at::randn({2, 4, 32, 32})}, {"timestep", at::full({2}, 500, at::kLong)}, {"encoder_hidden_states", at::randn({2, 16, 64})},
                {"text_embeds", at::randn({2, 64})}, {"time_ids", at::full({2, 6}, 256.0)}, {"target", at::randn({2, 4, 32, 32})}};
  return out;
}

void unet_forward(benchmark::State& state) {
  const UnetCase unet = small_case();
  const NoGrad no_grad;
  for (auto _ : state) benchmark::DoNotOptimize(unet.forward());
}
BENCHMARK(unet_forward)->Unit(benchmark::kMillisecond);

void unet_training_step(benchmark::State& state) {
  UnetCase unet = small_case();
  unet.prepare();
  unet.model->set_recompute(state.range(0) != 0);
  for (auto _ : state) benchmark::DoNotOptimize(unet.step());
}
BENCHMARK(unet_training_step)->ArgName("recompute")->DenseRange(0, 1)->Unit(benchmark::kMillisecond);

// `f` forward and backward on x [., .], whose result `check` must give as well.
template <class F, class G>
void operator_pass(benchmark::State& state, const Tensor& x, F f, G check) {
  const NoGrad outer;
  if (!at::allclose(f(x), check(x), 1e-4, 1e-4)) return state.SkipWithError("the fused operator differs from the plain one");
  const at::AutoGradMode grad_mode(true);
  const Tensor leaf = x.clone().requires_grad_(true), seed = at::randn_like(check(x));
  for (auto _ : state) {
    f(leaf).backward(seed);
    leaf.mutable_grad() = Tensor();
  }
}

void norm_silu(benchmark::State& state) {
  nn::GroupNorm norm(32, 256);
  norm.initialise(1);
  const auto fused = [&](const Tensor& x) { return nn::group_norm_silu(norm, x); };
  const auto plain = [&](const Tensor& x) { return at::silu(norm(x)); };
  const Tensor x = at::randn({2, 256, 32, 32});
  state.range(0) != 0 ? operator_pass(state, x, fused, plain) : operator_pass(state, x, plain, fused);
}
BENCHMARK(norm_silu)->ArgName("fused")->DenseRange(0, 1)->Unit(benchmark::kMicrosecond);

void geglu(benchmark::State& state) {
  const auto plain = [](const Tensor& x) {
    const auto half = x.chunk(2, -1);
    return half[0] * at::gelu(half[1]);
  };
  const Tensor x = at::randn({512, 2 * 4 * 256});
  state.range(0) != 0 ? operator_pass(state, x, nn::geglu, plain) : operator_pass(state, x, plain, nn::geglu);
}
BENCHMARK(geglu)->ArgName("fused")->DenseRange(0, 1)->Unit(benchmark::kMicrosecond);

int serve() {
  Server server;
  try {
    for (std::string line; std::getline(std::cin, line);) std::cout << server.answer(line).dump() << std::endl;
  } catch (const Error& e) {
    fmt::print(stderr, "bench_unet: {}\n", e.what());
    return e.exit_code();
  }
  return 0;
}

}  // namespace
}  // namespace fewstep

int main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == "--serve") return fewstep::serve();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
