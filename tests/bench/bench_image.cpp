// Decode + antialiased resize + centre crop, per core. FEWSTEP_BENCH_JPEGS names a folder of .jpg files; without it one
// picture is made here. tools/bench_vs_pillow.sh compares with Pillow on the same files.
#include <benchmark/benchmark.h>

#include <cstdlib>

#include "src/base/files.h"
#include "src/io/image.h"
#include "src/tensor/ops.h"

namespace fewstep::io {
namespace {

std::vector<std::string> jpegs() {
  std::vector<std::string> out;
  if (const char* folder = std::getenv("FEWSTEP_BENCH_JPEGS"))
    for (const auto& entry : std::filesystem::directory_iterator(folder))
      if (entry.path().extension() == ".jpg") out.push_back(read_text(entry.path()));
  if (out.empty()) {
    const Tensor coarse = at::randint(0, 256, {3, 60, 80}, at::TensorOptions(at::kByte));
    out.push_back(encode_image(resize(coarse, 640, 480), ".jpg", 85));
  }
  return out;
}

ResizeOptions options_of(const benchmark::State& state) {
  ResizeOptions options{.short_side = 256, .crop_width = 256, .crop_height = 256};
  options.filter = static_cast<Resample>(state.range(0));
  options.fast = state.range(1) != 0;
  return options;
}

// What is timed must be right: the one call equals its three steps.
bool correct(const std::string& bytes, const ResizeOptions& o) {
  if (o.fast) return true;
  const Tensor full = decode_image(bytes, "bench");
  const int64_t h = full.size(1), w = full.size(2);
  const Tensor small = w <= h ? resize(full, 256, 256 * h / w, o.filter) : resize(full, 256 * w / h, 256, o.filter);
  return decode_image_resized(bytes, "bench", o).equal(center_crop(small, 256, 256));
}

void read_resized(benchmark::State& state) {
  const std::vector<std::string> files = jpegs();
  const ResizeOptions options = options_of(state);
  if (!correct(files.front(), options)) return state.SkipWithError("the fused call differs from its steps");
  size_t i = 0;
  for (auto _ : state) benchmark::DoNotOptimize(decode_image_resized(files[i++ % files.size()], "bench", options));
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(read_resized)->ArgNames({"filter", "fast"})->ArgsProduct({{0, 1, 2}, {0, 1}})->Unit(benchmark::kMillisecond);

void decode_only(benchmark::State& state) {
  const std::vector<std::string> files = jpegs();
  size_t i = 0;
  for (auto _ : state) benchmark::DoNotOptimize(decode_image(files[i++ % files.size()], "bench"));
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(decode_only)->Unit(benchmark::kMillisecond);

void resize_only(benchmark::State& state) {
  const Tensor image = decode_image(jpegs().front(), "bench");
  for (auto _ : state) benchmark::DoNotOptimize(resize(image, 341, 256, static_cast<Resample>(state.range(0))));
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(resize_only)->ArgName("filter")->DenseRange(0, 2)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace fewstep::io

BENCHMARK_MAIN();
