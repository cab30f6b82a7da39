#include "tests/trainers/distillation_bench.h"

#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep::testing {

void make_teacher(const std::filesystem::path& folder, const TeacherKind& kind) {
  const std::string flow = kind.prediction == "flow_prediction" ? "schedule: {kind: flow}\n" : "";
  Bench bench(fmt::format(R"(
latents: {{kind: pixel_unshuffle, factor: 2}}
conditioner: {{kind: class, dim: 6, micro: {{size: true, crop: false, target: false}}}}
unet: {{block_out_channels: [{0}, {0}], layers_per_block: [1], down_block_types: [DownBlock2D, CrossAttnDownBlock2D],
  up_block_types: [UpBlock2D, UpBlock2D], attention_head_dim: [2], norm_num_groups: 2, addition_time_embed_dim: 4}}
sample: {{steps: 3, columns: 3, rows: 2}}
prediction: {1}
{2}optimizer: {{lr: 1.0e-3}}
)", kind.channels, kind.prediction, flow));
  std::map<std::string, TensorMap> state = bench.trainer->state();
  int64_t key = 1000 * static_cast<int64_t>(kind.noise);
  for (auto& [name, tensor] : state.at("weights")) {
    const Tensor ids = at::full({1}, ++key, at::kLong);
    tensor = tensor + 0.15 * normal_by_id(ids, {tensor.numel()}, kind.noise, Stream::init, 0).view(tensor.sizes());
  }
  bench.trainer->load_state(state);
  bench.trainer->save_model(folder);
}

double largest_difference(const TensorMap& a, const TensorMap& b) {
  double out = a.size() == b.size() ? 0 : 1e9;
  for (const auto& [name, tensor] : a) out = std::max(out, (tensor.to(at::kDouble) - b.at(name).to(at::kDouble)).abs().max().item<double>());
  return out;
}

}  // namespace fewstep::testing
