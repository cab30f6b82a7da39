// A config with one of everything: what the tests and the fuzz target read.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "src/config/config.h"

namespace fewstep::sample {

using config::Visitor;

enum class Schedule { constant, cosine };

struct Optimizer {
  double lr = 1e-4, beta1 = 0.9;
  Schedule schedule = Schedule::cosine;
  bool operator==(const Optimizer&) const = default;
};
inline void describe(Visitor& v, Optimizer& c) {
  static constexpr config::Choice kSchedules[] = {{"constant", 0}, {"cosine", 1}};
  v.field("lr", c.lr, "peak learning rate", config::kPositive);
  v.field("beta1", c.beta1, "first-moment decay", config::kUnit);
  v.field("schedule", c.schedule, "learning-rate schedule", kSchedules);
}

struct Row {
  std::string label;
  config::Overrides set;
  Optimizer optimizer;
  bool operator==(const Row&) const = default;
};
inline void describe(Visitor& v, Row& c) {
  v.require("label");
  v.field("label", c.label, "name in the table");
  v.field("set", c.set, "settings of this row");
  v.field("optimizer", c.optimizer, "its optimiser");
}

struct Model {
  virtual ~Model() = default;
  virtual std::string_view kind() const = 0;
  virtual void describe(Visitor& v) = 0;
};
struct Unet final : Model {
  int64_t width = 320;
  bool micro = true;
  std::string_view kind() const override { return "unet"; }
  void describe(Visitor& v) override {
    v.field("width", width, "channels", {8});
    v.field("micro", micro, "size conditioning");
  }
};
struct Transformer final : Model {
  int64_t depth = 24;
  Optimizer optimizer;
  std::string_view kind() const override { return "transformer"; }
  void describe(Visitor& v) override {
    v.field("depth", depth, "blocks", config::kAtLeastOne);
    v.field("optimizer", optimizer, "optimiser");
  }
};
struct ModelKind {
  std::string_view name;
  std::unique_ptr<Model> (*make)();
};
template <class C>
std::unique_ptr<Model> make() {
  return std::make_unique<C>();
}
inline constexpr ModelKind kModels[] = {{"unet", make<Unet>}, {"transformer", make<Transformer>}};

struct Empty {};
inline void describe(Visitor&, Empty&) {}

struct Sample {
  std::string name;
  int64_t seed = 0, steps = 1000;
  bool resume = false;
  double weight = 0.5;
  std::vector<int64_t> timesteps = {999, 499};
  std::vector<double> scales = {1, 0.5};
  std::vector<std::string> prompts;
  Optimizer optimizer;
  std::vector<Row> rows;
  std::unique_ptr<Model> model;
  std::unique_ptr<Model> teacher = std::make_unique<Unet>();
  Empty nothing;
};
inline void describe(Visitor& v, Sample& c) {
  v.require("name");
  v.field("name", c.name, "run name");
  v.field("seed", c.seed, "global seed");
  v.field("steps", c.steps, "training steps", config::kAtLeastOne);
  v.field("resume", c.resume, "go on");
  v.field("weight", c.weight, "of the second term", config::kUnit);
  v.field("timesteps", c.timesteps, "the student's", {0, 999});
  v.field("scales", c.scales, "of images", config::kPositive);
  v.field("prompts", c.prompts, "texts");
  v.field("optimizer", c.optimizer, "of the run");
  v.field("rows", c.rows, "of the table");
  v.field("model", c.model, "the network", kModels);
  v.field("teacher", c.teacher, "its teacher", kModels);
  v.field("nothing", c.nothing, "no keys yet");
  v.check(c.timesteps.size() == c.scales.size(), "scales", "must be as many as timesteps");
}

}  // namespace fewstep::sample
