// From JPEG files to the float batch of a trainer, per core: read, decode, resize to cover the target, crop, scale to
// [-1, 1]. FEWSTEP_BENCH_JPEGS names a folder of .jpg files; tools/bench_vs_torchvision.sh compares with torchvision on
// the same files.
#include <benchmark/benchmark.h>

#include <cstdlib>

#include "datasets/image_folder.h"
#include "datasets/loader.h"
#include "src/base/error.h"
#include "src/io/image.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace {

std::unique_ptr<Dataset> open_jpegs(int64_t size, bool fast) {
  const char* folder = std::getenv("FEWSTEP_BENCH_JPEGS");
  if (!folder) return nullptr;
  ImageFolderConfig config;
  config.folder = folder;
  config.require_captions = false;
  config.images.image_size = size;
  config.images.heldout = config.images.test = 0;
  config.images.targets.framing.decode = fast ? DecodeKind::fast : DecodeKind::exact;
  return config.build(Split::train);
}

// What is timed must be right: the fused way equals its steps, the scaled one is close.
bool loads_correctly(const Dataset& data, int64_t size, bool fast) {
  const Tensor full = io::read_image(data.image_file(0));
  const int64_t h = full.size(1), w = full.size(2), shorter = std::min(h, w);
  const auto scaled = [&](int64_t side) { return (2 * side * size + shorter) / (2 * shorter); };
  const Tensor expected = io::center_crop(io::resize(full, scaled(w), scaled(h)), size, size), got = data.get(0, 0, 0).image;
  return fast ? (got.to(at::kFloat) - expected.to(at::kFloat)).abs().mean().item<double>() < 2 : got.equal(expected);
}

void load_jpegs(benchmark::State& state) {
  const int64_t size = state.range(0);
  const auto data = open_jpegs(size, state.range(1) != 0);
  if (!data) return state.SkipWithError("set FEWSTEP_BENCH_JPEGS to a folder of .jpg files");
  if (!loads_correctly(*data, size, state.range(1) != 0)) return state.SkipWithError("the loaded image is not what its steps give");
  Loader loader(*data, {.batch_size = 1, .workers = 0, .shuffle = false});
  for (auto _ : state)  // one iteration is one pass over the folder: pictures differ in size
    for (int64_t i = 0; i < data->size(); ++i) benchmark::DoNotOptimize(loader.next());
  state.SetItemsProcessed(state.iterations() * data->size());
}
BENCHMARK(load_jpegs)->ArgNames({"size", "fast"})->ArgsProduct({{256, 512, 1024}, {0, 1}})->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace fewstep

BENCHMARK_MAIN();
