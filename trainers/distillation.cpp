#include "trainers/distillation.h"

#include <fmt/ranges.h>

#include <array>
#include <nlohmann/json.hpp>

#include "datasets/latent_cache.h"
#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/log.h"
#include "src/diffusion/scheduler_config.h"
#include "src/io/safetensors.h"
#include "src/nn/lora.h"
#include "src/pipelines/components.h"
#include "src/pipelines/draw_latents.h"
#include "src/pipelines/pipeline.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "trainers/diffusion_grid.h"
#include "trainers/diffusion_start.h"

namespace fewstep {
namespace fs = std::filesystem;
namespace {

constexpr const char* kDistillationFile = "distillation.json";
constexpr std::string_view kPeftPrefix = "base_model.model.";
constexpr double kRungTolerance = 1e-3;  // timesteps of one rung in two files

Tensor distilled_output(const models::UNet2DConditionModel& unet, Precision precision, const Tensor& x_t, const Tensor& t,
                   const models::UNetConditions& conditions) {
  const Autocast autocast(x_t.device().type(), at::kBFloat16, precision == Precision::bfloat16);
  return unet(x_t.to(dtype_of(precision)), t, conditions);
}

TensorMap detached_state(const nn::Module& module) {
  TensorMap out;
  for (const auto& [name, tensor] : module.state()) out.emplace(name, tensor.detach());
  return out;
}

std::unique_ptr<models::UNet2DConditionModel> copied_network(const models::UNet2DConditionModel& unet) {
  const Tensor like = unet.parameters().front().tensor;
  const nn::BuildScope scope(like.device(), like.scalar_type());
  auto out = std::make_unique<models::UNet2DConditionModel>(unet.config());
  out->load(detached_state(unet), "the teacher");
  return out;
}

// The teacher on the run's device, frozen.
pipelines::DiffusionModel frozen_teacher(const fs::path& folder, const TrainContext& context, Precision precision) {
  pipelines::DiffusionModel model = pipelines::load_diffusion_model(folder, {.device = context.world.device()});
  check_cached(model, context);
  model.unet->to(dtype_of(precision));
  model.unet->requires_grad(false);
  if (nn::Module* learned = model.conditioner->trainable()) {
    learned->to(dtype_of(precision));
    learned->requires_grad(false);
  }
  return model;
}

// What must agree for weights to go over: all but the size of image it was trained for.
Json architecture_of(const models::UNet2DConfig& config) {
  Json out = config.to_json();
  out.erase("sample_size");
  return out;
}

std::string differing_keys(const Json& a, const Json& b) {
  std::vector<std::string> out;
  for (const auto& [key, value] : a.items())
    if (!b.contains(key) || b.at(key) != value) out.push_back(fmt::format("{}: {} and {}", key, value.dump(), b.contains(key) ? b.at(key).dump() : "none"));
  return fmt::format("{}", fmt::join(out, "; "));
}

// What is saved for samplers: the student's own levels, or, where no scheduler has them by itself, its sampler only.
diffusion::SchedulerConfig scheduler_of(const diffusion::StudentSchedule& schedule, diffusion::Prediction prediction, bool warn) {
  try {
    return schedule.scheduler(prediction);
  } catch (const ConfigError& e) {
    if (warn)
      log::warn("distillation: samplers must be told timesteps=[{}] ({} has them): {}", fmt::join(schedule.timesteps(), ", "),
                kDistillationFile, e.what());
    diffusion::StudentScheduleConfig simple = schedule.config();
    simple.timesteps.clear();
    simple.steps = 1;
    return diffusion::StudentSchedule(simple, schedule.schedule()).scheduler(prediction);
  }
}

}  // namespace

void describe(config::Visitor& v, DistillationPictures& c) {
  v.field("columns", c.columns, "classes, or captions of the held-out split", config::kAtLeastOne);
  v.field("rows", c.rows, "blocks of rows, each from other noise", config::kAtLeastOne);
  v.field("batch_size", c.batch_size, "pictures drawn together", config::kAtLeastOne);
  v.field("teacher_steps", c.teacher_steps, "steps of the teacher's row (ddim)", config::kAtLeastOne);
  v.field("cfg_scale", c.cfg_scale, "guidance of the teacher's row: unconditional + cfg_scale (conditional - unconditional)", config::kNonNegative);
}

void describe_distillation(config::Visitor& v, DistillationConfig& c) {
  static constexpr config::Choice kScopes[] = {{"text", static_cast<int>(pipelines::NullScope::text)}, {"all", static_cast<int>(pipelines::NullScope::all)}};
  v.field("teacher", c.teacher, "run or model folder (diffusers' folders too) of the model that is distilled; it stays frozen");
  v.field("start", c.start, "run or model folder of a student to go on from, on the same form of network; empty: the teacher's weights");
  v.field("student", c.student, "the student's noise levels: those of its phases, its sampler and the saved scheduler");
  v.field("lora", c.lora, "train adapters on the one frozen network instead of full copies; targets are ends of names of its layers");
  v.field("unconditional", c.unconditional, "what the teacher's unconditional branch is not told: the text, or sizes as well", kScopes);
  describe_precision(v, c.precision);
  v.field("recompute", c.recompute, "make activations of blocks again in backward instead of keeping them");
  v.field("pictures", c.pictures, "rows of pictures: the teacher's, then x0 after each of the student's steps");
  v.check(!c.teacher.empty(), "teacher", "must be given: the run or model folder that is distilled");
}

bool of_distillation(std::string_view key) {
  for (const std::string_view part : {"teacher", "start", "student", "lora"})
    if (key == part || (key.starts_with(part) && key[part.size()] == '.')) return true;
  return false;
}

DistilledNetwork::DistilledNetwork(std::string name, models::UNet2DConditionModel& unet, std::unique_ptr<models::UNet2DConditionModel> own,
                                   const DistillationConfig& config, uint64_t seed)
    : name_(std::move(name)), own_(std::move(own)), unet_(own_ ? *own_ : unet), tuning_(unet_, config.lora, name_, seed),
      precision_(config.precision) {
  unet_.set_recompute(config.recompute);
}
DistilledNetwork::~DistilledNetwork() = default;

Tensor DistilledNetwork::operator()(const Tensor& x_t, const Tensor& t, const models::UNetConditions& conditions) const {
  const nn::AdapterScope adapter(tuning_.active());
  return distilled_output(unet_, precision_, x_t, t, conditions);
}

NamedTensors DistilledNetwork::parameters() const { return tuning_.parameters(); }
TensorMap DistilledNetwork::merged_state() const { return tuning_.merged_state(); }

Distillation::Distillation(const DistillationConfig& config, const TrainContext& context)
    : config_(config), context_(context), teacher_folder_(pipelines::find_model(config.teacher)),
      teacher_identity_(folders_identity(std::array{teacher_folder_ / "unet"})),
      model_(frozen_teacher(teacher_folder_, context, config.precision)), schedule_(config.student, model_.schedule) {
  student_.reset(new DistilledNetwork("student", *model_.unet, config.lora.on() ? nullptr : copied_network(*model_.unet), config_, context.seed));
  scheduler_of(schedule_, model_.prediction, true);  // now, not when saving
  // A checkpoint that is loaded next has the weights.
  if (!config.start.empty() && context.resume.empty()) go_on_from_start();
  log::info("distillation: teacher {} ({}; {}; {} schedule, predicting {}), {:.3g} GFLOP forward a sample; student of {} steps, {}: timesteps "
            "[{:g}], sigmas [{:.4f}]; {} of {} parameters trained",
            config.teacher, model_.latent_space->description(), model_.conditioner->description(),
            diffusion::name_of(model_.schedule.config().kind), diffusion::name_of(model_.prediction), forward_flops() * 1e-9, schedule_.steps(),
            diffusion::name_of(schedule_.config().student), fmt::join(schedule_.timesteps(), ", "), fmt::join(schedule_.plan().sigmas, ", "),
            count_elements(student_->parameters()), model_.unet->parameter_count());
}
Distillation::~Distillation() = default;

at::Device Distillation::device() const { return context_.world.device(); }
at::ScalarType Distillation::dtype() const { return dtype_of(config_.precision); }

std::unique_ptr<DistilledNetwork> Distillation::add(const std::string& name) {
  std::unique_ptr<DistilledNetwork> out(
      new DistilledNetwork(name, *model_.unet, config_.lora.on() ? nullptr : copied_network(*model_.unet), config_, context_.seed));
  if (!config_.lora.on()) return out;
  const NoGrad no_grad;
  const NamedTensors from = student_->parameters(), to = out->parameters();
  for (size_t i = 0; i < to.size(); ++i)
    if (to[i].name.ends_with("lora_A.weight")) to[i].tensor.copy_(from[i].tensor);
  return out;
}

// ---- going on from another student

void Distillation::go_on_from_start() {
  const fs::path folder = pipelines::find_model(config_.start);
  const diffusion::Prediction prediction = diffusion::load_scheduler_config(folder / "scheduler").prediction;
  if (prediction != model_.prediction)
    fail<ConfigError>("trainer.start: {} predicts '{}' and the teacher {} predicts '{}': a student has its teacher's prediction, start "
                      "from a student of this teacher", config_.start, diffusion::name_of(prediction), config_.teacher,
                      diffusion::name_of(model_.prediction));
  config_.lora.on() ? go_on_with_adapter(folder) : go_on_with_weights(folder);
  const Json facts = read_distillation(folder);
  if (!facts.is_object()) return;
  const auto rungs = facts.value("timesteps", std::vector<double>());
  bool same = rungs.size() == schedule_.timesteps().size();
  for (size_t k = 0; same && k < rungs.size(); ++k) same = std::abs(rungs[k] - schedule_.timesteps()[k]) <= kRungTolerance;
  if (!same)
    log::warn("distillation: {} was trained at timesteps [{:g}], this student has [{:g}]", config_.start, fmt::join(rungs, ", "),
              fmt::join(schedule_.timesteps(), ", "));
}

void Distillation::go_on_with_adapter(const fs::path& folder) {
  const fs::path file = folder / "adapter" / "adapter_model.safetensors";
  if (!fs::exists(file))
    fail<ConfigError>("trainer.start: {} has no adapter (model/adapter), but trainer.lora.rank is {}: set trainer.lora.rank=0, or name the "
                      "folder as trainer.teacher", config_.start, config_.lora.rank);
  const Json facts = read_distillation(folder);
  const std::string theirs = facts.is_object() ? facts.value("teacher_sha256", std::string()) : std::string();
  if (theirs != teacher_identity_)
    fail<ConfigError>("trainer.start: {} is an adapter on another teacher ({}, sha256 {}) than {} (sha256 {}): it means nothing there. "
                      "Distil that teacher, or set trainer.lora.rank=0 to go on with merged weights",
                      config_.start, facts.is_object() ? facts.value("teacher", std::string("unknown")) : "not said", theirs.substr(0, 12),
                      config_.teacher, teacher_identity_.substr(0, 12));
  const Json peft = read_json(folder / "adapter" / "adapter_config.json");
  const auto rank = peft.at("r").get<int64_t>();
  const auto alpha = peft.at("lora_alpha").get<double>();
  if (rank != config_.lora.rank || alpha != config_.lora.alpha)
    fail<ConfigError>("trainer.start: the adapter of {} has rank {} and alpha {}, trainer.lora has {} and {}: set trainer.lora.rank={} "
                      "trainer.lora.alpha={}", config_.start, rank, alpha, config_.lora.rank, config_.lora.alpha, rank, alpha);
  TensorMap tensors;
  for (const auto& [name, tensor] : io::Safetensors(file).all())
    tensors.emplace(name.starts_with(kPeftPrefix) ? name.substr(kPeftPrefix.size()) : name, tensor);
  nn::load_adapter(*model_.unet, student_->name(), tensors, file.string());
}

void Distillation::go_on_with_weights(const fs::path& folder) {
  const auto theirs = pipelines::load_frozen_component<models::UNet2DConditionModel>(folder / "unet", "UNet2DConditionModel");
  const Json a = architecture_of(theirs->config()), b = architecture_of(model_.unet->config());
  if (a != b)
    fail<ConfigError>("trainer.start: the network of {} has another form than the teacher's, {}: {}", config_.start, config_.teacher, differing_keys(a, b));
  expect_own_conditioner(folder);
  student_->own_->load(detached_state(*theirs), config_.start);
}

// A student sees what the teacher's conditioner says: one that learned with another (a text encoder of its own) would be lost.
void Distillation::expect_own_conditioner(const fs::path& folder) const {
  const auto other = [&](const std::string& what) {
    fail<ConfigError>("trainer.start: {} was trained with {} than the teacher {}: it is a student of another teacher", config_.start, what, config_.teacher);
  };
  const fs::path own = model_.conditioner->source();
  if (!own.empty()) {
    if (text_encoder_identity(folder) != text_encoder_identity(own)) other("other text encoders");
    return;
  }
  const auto theirs = pipelines::Conditioner::load(folder, at::kCPU);
  if (theirs->kind() != model_.conditioner->kind()) other(fmt::format("another conditioner ({})", theirs->kind()));
  nn::Module *a = model_.conditioner->trainable(), *b = theirs->trainable();
  if (!a || !b) return;
  const TensorMap wanted = detached_state(*a);
  for (const auto& [name, tensor] : detached_state(*b)) {
    const auto it = wanted.find(name);
    if (it == wanted.end() || it->second.sizes() != tensor.sizes() || !it->second.to(at::kCPU, at::kFloat).equal(tensor.to(at::kFloat)))
      other("another conditioner (" + name + ")");
  }
}

// ---- what a step reads

Tensor Distillation::teacher(const Tensor& x_t, const Tensor& t, const models::UNetConditions& conditions) const {
  const NoGrad no_grad;
  const nn::AdapterScope none({});
  return distilled_output(*model_.unet, config_.precision, x_t, t, conditions);
}

Tensor Distillation::teacher_middle(const Tensor& x_t, const Tensor& t, const models::UNetConditions& conditions) const {
  const nn::AdapterScope none({});
  const nn::TapScope taps({"mid_block"});
  distilled_output(*model_.unet, config_.precision, x_t, t, conditions);
  const auto found = taps.values().find("mid_block");
  if (found == taps.values().end()) fail<ConfigError>("trainer.teacher: the network of {} has no middle block to read features of", config_.teacher);
  return found->second.flatten(2).to(dtype());
}

models::UNetConditions Distillation::conditions(const Batch& batch) const {
  const NoGrad no_grad;
  const Autocast autocast(device().type(), at::kBFloat16, config_.precision == Precision::bfloat16);
  return pipelines::to_device((*model_.conditioner)(condition_input(batch)), device());
}

models::UNetConditions Distillation::null_conditions(const Batch& batch) const {
  const NoGrad no_grad;
  const Autocast autocast(device().type(), at::kBFloat16, config_.precision == Precision::bfloat16);
  pipelines::ConditionInput input = condition_input(batch);
  input.aesthetic = Tensor();  // the conditioner's negative score, as in sampling
  return pipelines::to_device(model_.conditioner->null(input, config_.unconditional), device());
}

Tensor Distillation::latents(const Batch& batch, const pipelines::LatentDraw& draw) const {
  const NoGrad no_grad;
  const pipelines::LatentSpace& space = *model_.latent_space;
  const Tensor z = batch.latent_mean.defined() ? space.from_posterior(batch.latent_mean, batch.latent_std, draw) : space.encode(batch.images, draw);
  return z.to(device(), dtype());
}

std::vector<int64_t> Distillation::latent_shape(const Batch& batch) const {
  const pipelines::LatentSpace& space = *model_.latent_space;
  if (batch.latent_mean.defined()) return {space.channels(), batch.latent_mean.size(2), batch.latent_mean.size(3)};
  return {space.channels(), batch.images.size(2) / space.factor(), batch.images.size(3) / space.factor()};
}

double Distillation::forward_flops() const {
  const Sample first = context_.train.get(0, context_.seed, 0);
  const int64_t f = model_.latent_space->factor();
  const bool cached = first.latent_mean.defined();
  const int64_t h = cached ? first.latent_mean.size(1) : first.image.size(1) / f, w = cached ? first.latent_mean.size(2) : first.image.size(2) / f;
  return model_.unet->forward_flops(h, w, model_.conditioner->context_length());
}

// ---- files

void Distillation::save(const fs::path& folder, std::string_view method, const Json& training) const {
  const diffusion::SchedulerConfig scheduler = scheduler_of(schedule_, model_.prediction, false);
  pipelines::save_diffusion_model(folder, {.unet = model_.unet->config(), .unet_state = student_->merged_state(),
                                           .conditioner = *model_.conditioner, .latent_space = *model_.latent_space,
                                           .schedule = diffusion::Schedule(scheduler.schedule), .prediction = model_.prediction,
                                           .sampling = scheduler.sampling});
  student_->tuning_.save_adapter(folder / "adapter", teacher_folder_.string(), "");
  std::vector<double> timesteps(schedule_.timesteps().begin(), schedule_.timesteps().end());
  Json lora;
  if (config_.lora.on()) lora = {{"rank", config_.lora.rank}, {"alpha", config_.lora.alpha}, {"targets", config_.lora.targets}};
  write_json(folder / kDistillationFile,
             {{"method", method}, {"steps", schedule_.steps()}, {"timesteps", timesteps}, {"sigmas", schedule_.plan().sigmas},
              {"sampler", diffusion::name_of(schedule_.sampling().sampler)}, {"student", diffusion::name_of(schedule_.config().student)},
              {"shift", schedule_.shift()}, {"cfg_scale", 1.0}, {"prediction", diffusion::name_of(model_.prediction)},
              {"teacher", teacher_folder_.string()}, {"teacher_sha256", teacher_identity_}, {"start", config_.start}, {"lora", lora},
              {"training", training}});
}

Json read_distillation(const fs::path& model_folder) {
  const fs::path file = model_folder / kDistillationFile;
  return fs::exists(file) ? read_json(file) : Json();
}

Tensor Distillation::frozen_sums() const {
  const NoGrad no_grad;
  std::vector<Tensor> sums;
  const auto add = [&](const nn::Module& module) {
    for (const auto& [name, tensor] : module.parameters()) sums.push_back(tensor.to(at::kDouble).sum().to(at::kCPU));
  };
  add(*model_.unet);
  if (const nn::Module* learned = model_.conditioner->trainable()) add(*learned);
  return at::stack(sums);
}

void Distillation::add_state(std::map<std::string, TensorMap>& files) const { files["teacher"] = {{"sums", frozen_sums()}}; }

void Distillation::check_state(const std::map<std::string, TensorMap>& files) const {
  const auto found = files.find("teacher");
  if (found == files.end() || !found->second.contains("sums")) fail<DataError>("the checkpoint has no teacher.safetensors");
  if (!found->second.at("sums").equal(frozen_sums()))
    fail<DataError>("trainer.teacher: {} is not the model this run distils: it has other weights", config_.teacher);
}

}  // namespace fewstep
