#include "tests/trainers/feature_gan_bench.h"

#include <nlohmann/json.hpp>

#include "src/base/json.h"
#include "src/models/conv_encoder.h"
#include "src/models/dinov2.h"
#include "src/models/model.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep::testing {

void write_conv_features(const std::filesystem::path& folder) {
  models::ConvEncoderConfig c;
  c.image_size = 16;
  c.channels = {8, 16}, c.kernels = {3, 3}, c.strides = {1, 2}, c.blocks = {1, 1}, c.feature_stages = {0, 1}, c.embedding_dim = 8;
  models::ConvEncoder encoder(c);
  encoder.initialise(11);
  models::save_model(folder / "encoder", encoder, c.to_json());
  write_json(folder / "model_index.json", Json::parse(R"({"_class_name": "EncoderPipeline", "encoder": ["fewstep", "ConvEncoder"]})"));
}

void write_vit_features(const std::filesystem::path& folder) {
  const models::Dinov2Config c{.hidden_size = 16, .num_hidden_layers = 4, .num_attention_heads = 2, .mlp_ratio = 2, .image_size = 16, .patch_size = 4};
  models::Dinov2Model network(c);
  network.initialise(12);
  models::save_model(folder / "encoder", network, c.to_json());
  write_json(folder / "model_index.json", Json::parse(R"({"_class_name": "Dinov2Pipeline", "encoder": ["transformers", "Dinov2Model"]})"));
}

void write_teacher_file(const std::filesystem::path& path, const std::vector<int64_t>& ids, int64_t side, const std::string& fingerprint) {
  TeacherFacts facts;
  facts.model = "0123456789abcdef0123", facts.model_name = "runs/other", facts.source = "scored pictures";
  facts.source_fingerprint = fingerprint, facts.split = "train", facts.count = static_cast<int64_t>(ids.size());
  TeacherImageWriter writer(path, facts, 4);
  for (size_t i = 0; i < ids.size(); ++i)
    writer.add({{.image = at::full({1, side, side}, 8 * static_cast<int64_t>(i), at::kByte), .id = ids[i], .label = ids[i] % 3,
                 .caption = ids[i] % 2 ? "a red thing" : "a blue thing"}});
  writer.finish();
}

GanBench::GanBench(const FeatureGanConfig& config, const GanSetting& s, dist::World* given, const std::filesystem::path& teacher)
    : world(given ? *given : *own), setting(s),
      root(config::parse<DiffusionConfigRoot>(yaml_with(s.conditioner, "schedule: {kind: flow}\nprediction: flow_prediction\n"))),
      context{.world = world, .seed = s.seed, .total_steps = 100, .horizon = 100, .batch_size = s.batch_size, .accumulate = s.accumulate,
              .train = *data, .validation = data.get()},
      model(start_diffusion(root.config.start, context, s.precision)),
      schedule({.steps = 2, .timesteps = {}, .shift = 2.5, .student = diffusion::StudentKind::ode}, model.schedule),
      gan(std::make_unique<FeatureGan>(config, model, schedule, teacher, context)) {}

Batch GanBench::batch(int64_t step) const {
  std::vector<int64_t> indices;
  for (int64_t i = world.rank(); i < setting.batch_size; i += world.size()) indices.push_back((setting.batch_size * step + i) % data->size());
  return load_indices(*data, indices, 0);
}

models::UNetConditions GanBench::conditions(const Batch& b) const {
  const NoGrad no_grad;
  return (*model.conditioner)(condition_input(b));
}

Tensor GanBench::fakes(const Batch& b, int64_t step) const {
  const auto dtype = setting.precision == Precision::float64 ? at::kDouble : at::kFloat;
  return 0.5 * normal_by_id(b.ids, {4, 8, 8}, 99, Stream::noise, step).to(dtype);
}

}  // namespace fewstep::testing
