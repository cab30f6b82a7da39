// Memory of a GAN step whose decoder and discriminator are larger than its student, as at full size: an autoencoder's decoder, a
// DINOv2-form network, heads, and a UNet. Two stages alone save the smaller of the two graphs, here the student's, and only if it is made
// again; in parts also most of the decoder's, for one more of its forward passes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "src/models/autoencoder_kl.h"
#include "src/models/dinov2.h"
#include "src/models/feature_discriminator.h"
#include "src/models/unet2d.h"
#include "src/nn/gradients.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/support/live_bytes.h"
#include "trainers/adversarial_losses.h"
#include "trainers/two_stage_backward.h"

namespace fewstep {
namespace {

models::UNet2DConfig student_form() {
  models::UNet2DConfig c;
  c.in_channels = c.out_channels = 4, c.sample_size = 16;
  c.block_out_channels = {32, 64}, c.layers_per_block = {1, 1};
  c.down_block_types = {"DownBlock2D", "DownBlock2D"}, c.up_block_types = {"UpBlock2D", "UpBlock2D"};
  c.mid_block_type = "UNetMidBlock2D";
  c.norm_num_groups = 8;
  return c;
}
models::AutoencoderKlConfig decoder_form() {
  models::AutoencoderKlConfig c;
  c.block_out_channels = {16, 32, 32}, c.norm_num_groups = 8, c.sample_size = 64;
  return c;
}

// 16 x 16 latents, 64 x 64 pixels.
struct DominatedGan {
  models::UNet2DConditionModel unet{student_form()};
  models::AutoencoderKL vae{decoder_form()};
  models::Dinov2Model vit{{.hidden_size = 64, .num_hidden_layers = 4, .num_attention_heads = 4, .mlp_ratio = 4, .image_size = 64, .patch_size = 8}};
  models::FeatureTapOptions taps{.blocks = {0, 2, 4}};
  models::FeatureDiscriminator heads{models::FeatureDiscriminatorConfig{.channels = {64, 64, 64}, .norm = "group"}};
  DominatedGan() {
    uint64_t seed = 1;
    for (nn::Module* module : std::initializer_list<nn::Module*>{&unet, &vae, &vit, &heads}) {
      module->initialise(seed++);
      module->requires_grad(module == &unet);
      module->train(false);
    }
    const NoGrad no_grad;  // the output of a fresh network is 0
    for (const auto& [name, tensor] : unet.parameters())
      if (name.starts_with("conv_out.weight")) tensor.add_(0.05);
  }
  Tensor student(const Tensor& x) const { return unet(x, at::full({1}, 500.0), {}); }
  Tensor decode(const Tensor& z) const { return vae.decode(vae.unscale(z)); }
  Tensor loss(const Tensor& images) {
    return generator_loss(AdversarialLoss::non_saturating, heads(models::feature_taps(vit, images, taps))).sum();
  }
  std::vector<Tensor> weights() const {
    std::vector<Tensor> out;
    for (const auto& [name, tensor] : unet.parameters()) out.push_back(tensor);
    return out;
  }
};

double largest_relative(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  double largest = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) norm = std::max(norm, b[i].abs().max().item<double>());
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, (a[i] - b[i]).abs().max().item<double>() / norm);
  return largest;
}

TEST(TwoStageMemory, InPartsMostIsSavedWhereDecoderAndDiscriminatorDominate) {
  DominatedGan gan;
  const Tensor x = normal_by_id(at::arange(4, at::kLong), {4, 16, 16}, 1, Stream::noise, 0), ids = at::arange(4, at::kLong);
  const auto decode = [&](const Tensor& z) { return gan.decode(z); };
  const auto loss = [&](const Tensor& images) { return gan.loss(images); };
  const auto [expected, one_graph] = testing::with_peak([&] { return nn::gradients(loss(decode(gan.student(x))), gan.weights(), false); });
  const auto [unused, student_alone] = testing::with_peak([&] { return nn::gradients(gan.student(x).sum(), gan.weights(), false); });
  std::printf("one graph: peak %.2f MB, of which the student's own pass takes %.2f\n", static_cast<double>(one_graph) / 1e6, static_cast<double>(student_alone) / 1e6);
  for (const bool again : {true, false})  // whether the student runs again for its own graph, or holds it meanwhile
    for (const int64_t part : {0, 1}) {
      const auto [got, peak] = testing::with_peak([&] {
        Tensor held, gradient;
        {
          std::optional<NoGrad> no_grad;
          if (again) no_grad.emplace();
          held = gan.student(x);
          gradient = pixel_gradient(held, ids, decode, loss, {.decode_part = part}).gradient;
        }
        if (again) held = gan.student(x);
        return nn::gradients(injected_gradient(held, gradient), gan.weights(), false);
      });
      const double gap = largest_relative(got, expected), saved = 1 - static_cast<double>(peak) / static_cast<double>(one_graph);
      std::printf("two stages, student %s, decode_part %ld: peak %.2f MB, %.0f %% saved, largest relative difference %.2e\n",
                  again ? "run again" : "held", part, static_cast<double>(peak) / 1e6, 100 * saved, gap);
      EXPECT_LT(gap, 1e-5);
      if (part == 1) {
        EXPECT_GT(saved, 0.50);
      }
    }
}

}  // namespace
}  // namespace fewstep
