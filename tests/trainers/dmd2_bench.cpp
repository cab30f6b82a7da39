#include "tests/trainers/dmd2_bench.h"

#include <cmath>

#include "src/tensor/ops.h"

namespace fewstep::testing {
namespace {

struct Teacher {
  ScratchFolder folder{"dmd2-teacher"};
  std::filesystem::path model = folder / "model";
  explicit Teacher(const std::string& more) {
    Bench bench(yaml_with(kClass, more + "optimizer: {lr: 1.0e-2}\n"));
    for (int64_t step = 0; step < 12; ++step) bench.step(step);
    bench.trainer->save_model(model);
  }
};

}  // namespace

const std::filesystem::path& flow_teacher() {
  static const Teacher teacher(kFlowTeacher);
  return teacher.model;
}
const std::filesystem::path& epsilon_teacher() {
  static const Teacher teacher("");
  return teacher.model;
}
const std::filesystem::path& sample_teacher() {
  static const Teacher teacher("prediction: sample\n");
  return teacher.model;
}

std::string dmd2_yaml(const std::filesystem::path& teacher, const std::string& more) {
  std::string out = fmt::format("teacher: {}\nprecision: float64\n", teacher.string());
  const auto unless = [&](const std::string& key, const std::string& value) {
    if (more.find(key + ":") != 0 && more.find("\n" + key + ":") == std::string::npos) out += key + ": " + value + "\n";
  };
  unless("student", "{timesteps: [1000, 700], student: ode}");
  unless("cfg_scale", "2");
  unless("monitor", "{every: 1, diversity_every: 0}");
  unless("optimizer", "{lr: 1.0e-3, beta1: 0, beta2: 0.9, clip_norm: 10, schedule: constant, ema_decay: 0.9}");
  unless("critic", "{updates: 2, optimizer: {lr: 2.0e-3, beta1: 0, beta2: 0.9, clip_norm: 10, schedule: constant}}");
  return out + more;
}

Dmd2Bench::Dmd2Bench(const std::string& yaml, int64_t accumulate) : root(config::parse<Dmd2ConfigRoot>(yaml)) {
  trainer = root.config.build(context(accumulate));
}

std::map<std::string, double> Dmd2Bench::step(int64_t step) {
  Metrics m = trainer->step(batch(step), {.step = step, .epoch = 0, .seed = 3});
  return m.reduce(*world);
}

TrainerState Dmd2Bench::state() const {
  TrainerState out;
  for (const auto& [file, tensors] : trainer->state())
    for (const auto& [name, tensor] : tensors) out[file].emplace(name, tensor.clone());
  return out;
}

std::vector<std::string> differing_tensors(const TrainerState& a, const TrainerState& b) {
  std::vector<std::string> out;
  for (const auto& [file, tensors] : a)
    for (const auto& [name, tensor] : tensors)
      if (!b.contains(file) || !b.at(file).contains(name) || !b.at(file).at(name).equal(tensor)) out.push_back(file + ": " + name);
  return out;
}

double weight_distance(const TrainerState& a, const TrainerState& b, const std::string& prefix) {
  double difference = 0, norm = 0;
  for (const auto& [name, tensor] : a.at("weights")) {
    if (!name.starts_with(prefix)) continue;
    difference += (tensor - b.at("weights").at(name)).to(at::kDouble).square().sum().item<double>();
    norm += tensor.to(at::kDouble).square().sum().item<double>();
  }
  return std::sqrt(difference / norm);
}

}  // namespace fewstep::testing
