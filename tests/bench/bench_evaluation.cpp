// The parts of an evaluation that cost time: the InceptionV3 of FID on prepared images, the Frechet distance at 2,048
// features from statistics, and from fewer samples than features with its interval. Both sides of
// tools/bench_evaluation.py read the same files:
//   FEWSTEP_BENCH_INCEPTION     folder of the network (config.json, model.safetensors); without it random weights
//   FEWSTEP_BENCH_STATISTICS_A  and _B: files of statistics (.npz, .h5); without them those of random features
// Times are those of the process (all its threads) beside wall time.
#include <benchmark/benchmark.h>

#include <cstdlib>

#include "eval/frechet.h"
#include "eval/statistics_file.h"
#include "src/models/fid_inception.h"
#include "src/models/model.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep::eval {
namespace {

constexpr int64_t kFeatures = 2048;

std::unique_ptr<nn::Module> load_network() {
  if (const char* folder = std::getenv("FEWSTEP_BENCH_INCEPTION")) return models::load_model(folder);
  auto network = std::make_unique<models::FidInception>(models::FidInceptionConfig{});
  network->initialise(1);
  network->train(false);
  network->requires_grad(false);
  return network;
}

// Loaded once; what is timed must be right: the network as it is used agrees with the plain one.
const models::FidInception& network() {
  static const std::unique_ptr<nn::Module> module = [] {
    const NoGrad no_grad;
    auto loaded = load_network();
    auto& inception = dynamic_cast<models::FidInception&>(*loaded);
    const Tensor x = normal_by_id(at::arange(1, at::kLong), {3, 299, 299}, 1, Stream::eval, 0) * 0.5;
    const Tensor plain = inception(x).pool3;
    inception.prepare_inference();
    const double difference = ((inception(x).pool3 - plain).norm() / plain.norm()).item<double>();
    if (!(difference < 1e-5)) throw std::runtime_error("the prepared network differs from the plain one");
    return loaded;
  }();
  return dynamic_cast<const models::FidInception&>(*module);
}

void inception_features(benchmark::State& state) {
  const NoGrad no_grad;
  const models::FidInception& inception = network();
  const int64_t B = state.range(0);
  const Tensor x = normal_by_id(at::arange(B, at::kLong), {3, 299, 299}, 2, Stream::eval, 0) * 0.5;
  benchmark::DoNotOptimize(inception(x).pool3);
  for (auto _ : state) benchmark::DoNotOptimize(inception(x).pool3);
  state.SetItemsProcessed(state.iterations() * B);
}
BENCHMARK(inception_features)
    ->ArgName("batch")
    ->Arg(8)
    ->Arg(16)
    ->Arg(32)
    ->Arg(50)
    ->MeasureProcessCPUTime()
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

Tensor random_features(int64_t n, uint64_t seed) {
  const Tensor mix = normal_by_id(at::arange(kFeatures, at::kLong), {kFeatures}, 5, Stream::eval, 0) * 0.02;
  return at::relu(at::mm(normal_by_id(at::arange(n, at::kLong), {kFeatures}, seed, Stream::eval, 0), mix) + 0.2);
}

FeatureStatistics statistics(const char* variable, uint64_t seed) {
  if (const char* file = std::getenv(variable)) return load_statistics(file).statistics;
  FeatureStatistics s;
  s.add(random_features(2 * kFeatures, seed));
  return s;
}

// With everything that a call of its own needs: the reference's factor is made anew.
void frechet_from_statistics(benchmark::State& state) {
  const FeatureStatistics a = statistics("FEWSTEP_BENCH_STATISTICS_A", 1),
                          b = statistics("FEWSTEP_BENCH_STATISTICS_B", 2);
  const double forth = frechet_distance(a, b), back = frechet_distance(b, a);
  if (std::abs(forth - back) > 1e-6 * std::abs(forth)) return state.SkipWithError("the distance is not symmetric");
  for (auto _ : state) benchmark::DoNotOptimize(frechet_distance(a, b));
  state.counters["distance"] = forth;
}
BENCHMARK(frechet_from_statistics)->MeasureProcessCPUTime()->UseRealTime()->Unit(benchmark::kMillisecond);

void frechet_with_interval_of_few(benchmark::State& state) {
  const FrechetReference reference(statistics("FEWSTEP_BENCH_STATISTICS_A", 1));
  GroupedStatistics samples;
  samples.add(random_features(state.range(0), 3));
  const double direct = reference.distance(samples.total());
  if (std::abs(direct - frechet_with_interval(reference, samples).value) > 1e-4 * direct)
    return state.SkipWithError("the distance from samples differs from that of their statistics");
  for (auto _ : state) benchmark::DoNotOptimize(frechet_with_interval(reference, samples));
}
BENCHMARK(frechet_with_interval_of_few)
    ->ArgName("images")
    ->Arg(500)
    ->MeasureProcessCPUTime()
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace fewstep::eval

BENCHMARK_MAIN();
