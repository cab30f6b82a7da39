// Small networks of SDXL's topology with random weights, as a diffusers folder.
#pragma once
#include <filesystem>

#include "src/models/autoencoder_kl.h"
#include "src/models/clip.h"
#include "src/models/unet2d.h"

namespace fewstep::support {

enum class SmallRelease { base, refiner, version1 };

// What a file without configs still tells: heads of 64 channels, 32 groups, the contexts and vectors of the releases.
models::UNet2DConfig small_unet_config(SmallRelease release);
models::AutoencoderKlConfig small_vae_config(SmallRelease release);
models::ClipTextConfig small_text_config(bool open_clip);
// model_index.json, unet, vae, text_encoder and/or text_encoder_2, their tokenizers (files in `vocabulary`), scheduler.
void write_small_release(const std::filesystem::path& folder, SmallRelease release, const std::filesystem::path& vocabulary);

}  // namespace fewstep::support
