// The adversarial stage of a few-step student: heads on the features of a frozen network tell real and teacher images from the
// student's (ADD, Sauer et al. 2023, arXiv 2311.17042; StyleGAN-T's heads). An object that a distillation trainer holds beside its
// own turns:
//
//   generator  d L_G / d x0 through decoder and features, in two stages (two_stage_backward.h); the heads are left alone
//   critic     L_D = sum real + fake (+ approximate R1); gradients of the heads only
//   step       one update of the heads
//
// The real side is a mix of fixed ratio: exactly round(real_share B) samples of every global batch are training images with
// their own captions, the rest images the teacher made (teacher_images.h), each with the caption it was made for.
#pragma once
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "src/diffusion/student_schedule.h"
#include "src/models/feature_discriminator.h"
#include "src/pipelines/diffusion_model.h"
#include "src/tensor/optim.h"
#include "trainers/adversarial_losses.h"
#include "trainers/differentiable_augmentation.h"
#include "trainers/trainer.h"
#include "trainers/two_stage_backward.h"

namespace fewstep {

// What the heads are told of a sample's caption or class.
enum class GanCondition { automatic, pooled, context_mean, none };
// How much of the weight the rungs get: the same for all, or alpha(t_k) (sqrt(abar), or 1 - sigma for flow: SenseFlow), so that
// rungs of much noise are not asked for texture.
enum class RungLaw { constant, alpha };

struct FeatureGanConfig {
  std::string features;                   // run or model folder of the frozen network
  std::vector<int64_t> blocks = {};       // taps (FeatureTapOptions); empty: spread over the depth
  int64_t side = 0;                       // pixels of the short side that the features see; 0: as decoded
  bool autocast = false;                  // features in bfloat16
  models::FeatureDiscriminatorConfig heads;
  GanCondition condition = GanCondition::automatic;
  AdversarialLoss loss = AdversarialLoss::hinge;
  bool augmented = true;
  DifferentiableAugmentationConfig augmentation;
  double r1_weight = 0.0, r1_alpha = 0.1; // approximate R1 on pixels of the real side
  LatentCropConfig crop;
  int64_t decode_part = 0;
  double real_share = 0.5;
  std::string teacher_images;             // file of `fewstep data teacher`; needed when real_share < 1
  bool any_teacher = false;               // images of another teacher than this run's are taken, too
  double weight = 1.0;                    // of the generator's loss
  RungLaw rung_law = RungLaw::constant;
  std::vector<double> rung_weights = {};  // one a rung, times `weight`; instead of the law
  int64_t start_step = 0;                 // first step at which the student gets this gradient
  int64_t critic_lead = 0;                // steps before it during which the heads learn already
  OptimizerConfig optimizer = {.lr = 1e-3, .beta1 = 0.0, .beta2 = 0.99, .schedule = LrSchedule::constant};
  bool on() const { return !features.empty(); }
};
void describe(config::Visitor& v, FeatureGanConfig& c);  // v.field("gan", config.gan, "...")

// One micro-batch of a turn.
struct GanBatch {
  const Batch& batch;                         // what the fakes were made for: ids, captions or labels, images
  const models::UNetConditions& conditions;   // of `batch`, without dropout, as the student was given them
  int64_t first = 0;  // place of the micro-batch in this rank's share: sample i is number rank + (first + i) ranks of the global batch
  int64_t rung = 0;
  StepContext at = {};
  int64_t turn = 0;   // critic turns with other fakes within one step are told apart: below 16
};

class FeatureGan {
 public:
  // `teacher_folder`: of `model`, checked against what made the teacher images. ConfigError / DataError: no features there, blocks it does not
  // have, rung_weights of another number than rungs, a crop larger than the latents, teacher images that do not fit.
  FeatureGan(const FeatureGanConfig& config, const pipelines::DiffusionModel& model, const diffusion::StudentSchedule& schedule,
             const std::filesystem::path& teacher_folder, const TrainContext& context);
  ~FeatureGan();

  bool generator_active(int64_t step) const;  // step >= start_step
  bool critic_active(int64_t step) const;     // step >= start_step - critic_lead
  double rung_weight(int64_t rung) const;     // weight times the rung's

  // d (weight(rung) sum of L_G) / d x0 x ranks / global batch, for injected_gradient(); `images`: what the critic's turn may use
  // again. x0: [B, C, h, w], with or without graph. The heads run with the power iteration at rest and get no gradient.
  // NumericError naming what is not finite. Metrics gan_generator, gan_gradient (norm over this micro-batch).
  PixelGradient generator_turn(const Tensor& x0, const GanBatch& on, Metrics& metrics);
  // Adds the gradients of the heads; exchanged over ranks in the `last` micro-batch of the turn. `images`: PixelGradient::images
  // of the same x0, id for id; undefined: decoded here. Metrics gan_critic, gan_r1, gan_logit_{real,teacher,fake},
  // gan_accuracy_{real,teacher,fake}, gan_same_sample (share of teacher images made for the very sample).
  void critic_turn(const Tensor& x0, const Tensor& images, const GanBatch& on, bool last, Metrics& metrics);
  void step(const StepContext& at, Metrics& metrics);  // after the last micro-batch: gan_grad_norm, gan_lr

  // Heads with their spectral-norm vectors, optimiser, and a sum over the frozen features that load_state checks.
  void add_state(std::map<std::string, TensorMap>& files) const;
  void load_state(const std::map<std::string, TensorMap>& files);

  const models::FeatureDiscriminator& heads() const;
  double feature_flops() const;     // forward pass of the features, of one image; heads and decoder are not counted
  std::string description() const;  // one line for logs

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fewstep
