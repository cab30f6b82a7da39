// Keys of the adversarial stage.
#include "trainers/feature_gan.h"

namespace fewstep {
namespace {

constexpr config::Choice kGanConditions[] = {{"automatic", static_cast<int>(GanCondition::automatic)},
                                             {"pooled", static_cast<int>(GanCondition::pooled)},
                                             {"context_mean", static_cast<int>(GanCondition::context_mean)},
                                             {"none", static_cast<int>(GanCondition::none)}};
constexpr config::Choice kRungLaws[] = {{"constant", static_cast<int>(RungLaw::constant)}, {"alpha", static_cast<int>(RungLaw::alpha)}};

}  // namespace

void describe(config::Visitor& v, FeatureGanConfig& c) {
  v.field("features", c.features, "run or model folder of the frozen network whose features the heads read: of trainer dino, of a "
          "classifier_encoder or contrastive, or a DINOv2 checkpoint; empty: no adversarial stage");
  v.field("blocks", c.blocks, "taps: DINOv2: 0 embeddings, i the output of block i; ConvEncoder: stages from 0; empty: spread over the depth", config::kNonNegative);
  v.field("side", c.side, "pixels of the short side that the features see; 0: as decoded", config::kNonNegative);
  v.field("autocast", c.autocast, "features in bfloat16");
  v.field("heads", c.heads, "the heads on the taps");
  v.field("condition", c.condition, "what the heads are told: the pooled text, the mean of the context, nothing; automatic: the first there is", kGanConditions);
  v.field("loss", c.loss, "adversarial loss", adversarial_losses());
  v.field("augmented", c.augmented, "show augmented pictures to the heads");
  v.field("augmentation", c.augmentation, "differentiable augmentation; real and fake pictures have parameters of their own");
  v.field("r1_weight", c.r1_weight, "weight of the approximate R1 (D(x) - D(x + alpha n))^2 on the real side; 0: none", config::kNonNegative);
  v.field("r1_alpha", c.r1_alpha, "alpha of it, in pixels of [-1, 1]", config::kPositive);
  v.field("crop", c.crop, "window of the latents that is decoded and judged");
  v.field("decode_part", c.decode_part, "samples decoded at a time, with one more pass of the decoder; 0: all", config::kNonNegative);
  v.field("real_share", c.real_share, "share of the real side that are training images (exactly, in every global batch); the rest are the teacher's", config::kUnit);
  v.field("teacher_images", c.teacher_images, "file of `fewstep data teacher`; needed for real_share below 1");
  v.field("any_teacher", c.any_teacher, "take images that another model made");
  v.field("weight", c.weight, "of the generator's loss", config::kNonNegative);
  v.field("rung_law", c.rung_law, "share of the weight that rung k gets: constant, or alpha(t_k): less for much noise", kRungLaws);
  v.field("rung_weights", c.rung_weights, "one factor of the weight a rung, noisiest first; instead of rung_law", config::kNonNegative);
  v.field("start_step", c.start_step, "first step at which the student gets this gradient", config::kNonNegative);
  v.field("critic_lead", c.critic_lead, "steps before that during which the heads learn already", config::kNonNegative);
  v.field("optimizer", c.optimizer, "of the heads");
  v.check(!c.on() || c.real_share == 1 || !c.teacher_images.empty(), "teacher_images", "is needed for a real_share below 1: `fewstep data teacher` makes it");
  v.check(c.optimizer.ema_decay == 0, "optimizer", "ema_decay must be 0: heads have no moving average");
}

}  // namespace fewstep
