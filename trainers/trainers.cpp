// The table of trainers: one line each.
#include "trainers/trainer.h"

namespace fewstep {

std::unique_ptr<TrainerConfig> make_autoencoder();
std::unique_ptr<TrainerConfig> make_autoregressive();
std::unique_ptr<TrainerConfig> make_classifier_encoder();
std::unique_ptr<TrainerConfig> make_contrastive();
std::unique_ptr<TrainerConfig> make_diffusion();
std::unique_ptr<TrainerConfig> make_dino();
std::unique_ptr<TrainerConfig> make_dmd2();
std::unique_ptr<TrainerConfig> make_next_clean_token();
std::unique_ptr<TrainerConfig> make_pcm();
std::unique_ptr<TrainerConfig> make_vq_tokenizer();

std::span<const TrainerKind> trainer_kinds() {
  static const TrainerKind kinds[] = {
      {"autoencoder", make_autoencoder},
      {"autoregressive", make_autoregressive},
      {"classifier_encoder", make_classifier_encoder},
      {"contrastive", make_contrastive},
      {"diffusion", make_diffusion},
      {"dino", make_dino},
      {"dmd2", make_dmd2},
      {"next_clean_token", make_next_clean_token},
      {"pcm", make_pcm},
      {"vq_tokenizer", make_vq_tokenizer},
  };
  return kinds;
}

}  // namespace fewstep
