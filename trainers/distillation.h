// What the trainers of few-step students share (pcm, dmd2): a frozen teacher, the student and further networks of the teacher's form,
// what they are told, pictures, the saved student. Two ways of the same mathematics:
//
//   lora.rank > 0   ONE network in memory: the teacher is the base with every adapter off, each trained network an adapter of its own
//   lora.rank = 0   a full copy of the teacher for each trained network
//
// The noise levels come from one diffusion::StudentSchedule: phases, rungs, pictures and the saved scheduler cannot disagree.
#pragma once
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/json.h"
#include "src/diffusion/samplers.h"
#include "src/diffusion/student_schedule.h"
#include "src/pipelines/diffusion_model.h"
#include "trainers/trainer.h"
#include "trainers/tuning.h"

namespace fewstep {

// Rows of pictures: the teacher's samples, and under them x0 after each rung of the student, from the same noise; a column a class
// or caption, `rows` times with other noise.
struct DistillationPictures {
  int64_t columns = 10, rows = 1, batch_size = 20;
  int64_t teacher_steps = 25;
  double cfg_scale = 1.5;  // of the teacher: unconditional + cfg_scale (conditional - unconditional)
};
void describe(config::Visitor& v, DistillationPictures& c);

struct DistillationConfig {
  std::string teacher;  // run or model folder
  std::string start;    // run or model folder the student goes on from; empty: the teacher
  diffusion::StudentScheduleConfig student;
  LoraConfig lora = {.targets = {"to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
                                 "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"}};  // PCM's
  pipelines::NullScope unconditional = pipelines::NullScope::text;
  Precision precision = Precision::float32;
  bool recompute = false;
  DistillationPictures pictures;
};
// Flat keys: teacher, start, student, lora, unconditional, precision, recompute, pictures.
void describe_distillation(config::Visitor& v, DistillationConfig& c);
bool of_distillation(std::string_view key);  // keys that no stage of a run can change (TrainerConfig::fixed)

// A network that starts as the teacher and is trained: its own copy, or an adapter on the shared base. Made by Distillation, which
// must outlive it.
class DistilledNetwork {
 public:
  ~DistilledNetwork();
  // x_t [B, C, h, w], t [B] -> the raw prediction [B, C, h, w], with the network's own adapter and no other. Gradients reach
  // parameters() (and x_t), unless grad mode is off.
  Tensor operator()(const Tensor& x_t, const Tensor& t, const models::UNetConditions& conditions) const;
  NamedTensors parameters() const;  // those trained: all, or the adapter's. In one order for all networks of a run
  TensorMap merged_state() const;   // of the whole network, an adapter merged
  const std::string& name() const { return name_; }

 private:
  friend class Distillation;
  DistilledNetwork(std::string name, models::UNet2DConditionModel& unet, std::unique_ptr<models::UNet2DConditionModel> own,
                   const DistillationConfig& config, uint64_t seed);
  std::string name_;
  std::unique_ptr<models::UNet2DConditionModel> own_;  // null: an adapter on the shared base
  models::UNet2DConditionModel& unet_;
  Tuning tuning_;
  Precision precision_;
};

class Distillation {
 public:
  // ConfigError: a teacher without conditions for the data, rungs that do not suit its schedule, LoRA targets that match nothing,
  // a start of another architecture, prediction or (as an adapter) teacher.
  Distillation(const DistillationConfig& config, const TrainContext& context);
  ~Distillation();
  Distillation(const Distillation&) = delete;
  Distillation& operator=(const Distillation&) = delete;

  const DistillationConfig& config() const { return config_; }
  const std::filesystem::path& teacher_folder() const { return teacher_folder_; }  // the folder that holds model_index.json
  const pipelines::DiffusionModel& model() const { return model_; }  // the teacher and its parts, all frozen
  const diffusion::StudentSchedule& schedule() const { return schedule_; }
  DistilledNetwork& student() { return *student_; }
  const DistilledNetwork& student() const { return *student_; }
  // Another network that starts as the TEACHER, whatever `start` is: a copy, or an adapter whose A equals the student's and whose B
  // is 0 (so that averages of two adapters make sense).
  std::unique_ptr<DistilledNetwork> add(const std::string& name);

  // No gradients, no adapter.
  Tensor teacher(const Tensor& x_t, const Tensor& t, const models::UNetConditions& conditions) const;
  // The output of the teacher's middle block, [B, D, h w] there. No adapter; gradients reach x_t unless grad mode is off. ConfigError: a
  // network without one.
  Tensor teacher_middle(const Tensor& x_t, const Tensor& t, const models::UNetConditions& conditions) const;
  models::UNetConditions conditions(const Batch& batch) const;       // on the device, no gradients, nothing dropped
  models::UNetConditions null_conditions(const Batch& batch) const;  // of the unconditional branch, by `unconditional`
  // [B, C, h, w] of the batch's images or cached posteriors, on the device in the training's type.
  Tensor latents(const Batch& batch, const pipelines::LatentDraw& draw) const;
  std::vector<int64_t> latent_shape(const Batch& batch) const;  // [C, h, w], without making them
  at::Device device() const;
  at::ScalarType dtype() const;

  // float [B, C, h, w] each: x0 after rung 0, 1, ... of the student, from unit noise x_T; the last one is its sample. noise(j) is
  // that of step j, for stochastic students. No gradients.
  std::vector<Tensor> student_x0(const models::UNetConditions& conditions, const Tensor& x_T, const diffusion::NoiseSource& noise) const;
  // uint8 [C, H, W]; see DistillationPictures. The caller puts EMA weights in place.
  Tensor sample_grid(uint64_t seed) const;
  // The model folder: the merged student, the scheduler of its levels, adapter/ (for LoRA), distillation.json. The caller puts EMA
  // weights in place. method: "pcm", "dmd2"; training: an object of what is worth a line of a model card.
  void save(const std::filesystem::path& folder, std::string_view method, const Json& training) const;

  // Sums of the frozen weights, which no checkpoint holds: DataError unless the teacher is the one the run started with.
  void add_state(std::map<std::string, TensorMap>& files) const;
  void check_state(const std::map<std::string, TensorMap>& files) const;
  double forward_flops() const;  // of one sample and network, text encoders and VAE not counted

 private:
  Tensor frozen_sums() const;
  void go_on_from_start();
  void go_on_with_adapter(const std::filesystem::path& folder);
  void go_on_with_weights(const std::filesystem::path& folder);
  void expect_own_conditioner(const std::filesystem::path& folder) const;

  const DistillationConfig config_;
  const TrainContext context_;
  const std::filesystem::path teacher_folder_;
  const std::string teacher_identity_;  // SHA-256 over the files of its network
  pipelines::DiffusionModel model_;
  const diffusion::StudentSchedule schedule_;
  std::unique_ptr<DistilledNetwork> student_;
};

// distillation.json of a model folder; a null value when there is none.
Json read_distillation(const std::filesystem::path& model_folder);

}  // namespace fewstep
