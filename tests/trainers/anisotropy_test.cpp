// A stretched and shifted embedding table behind its inverse map: the same function of clean tokens, another under raw noise.
#include <gtest/gtest.h>

#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "trainers/anisotropy.h"

namespace fewstep {
namespace {

using models::EmbeddingNoise;
using models::LlamaForCausalLM;
using models::Normalise;

constexpr int64_t kFirstImage = 10;

std::unique_ptr<LlamaForCausalLM> small_model(bool tied = false) {
  models::LlamaConfig c;
  c.vocab_size = 200, c.hidden_size = 32, c.intermediate_size = 48, c.num_hidden_layers = 2, c.initializer_range = 0.3;
  c.tie_word_embeddings = tied;
  auto model = std::make_unique<LlamaForCausalLM>(c);
  model->initialise(3);
  return model;
}

Tensor parameter(const LlamaForCausalLM& model, const std::string& name) {
  for (const auto& [key, tensor] : model.parameters())
    if (key == name) return tensor;
  throw Error("no " + name);
}

double gap(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

TEST(EmbedAffine, StartsAsTheIdentityAndIsKeptInTheConfig) {
  const NoGrad no_grad;
  models::LlamaConfig c = small_model()->config();
  EXPECT_FALSE(c.to_json().contains("embed_affine"));
  c.embed_affine = true;
  EXPECT_TRUE(models::LlamaConfig::from_json(c.to_json(), "test").embed_affine);
  LlamaForCausalLM affine(c);
  affine.initialise(3);
  EXPECT_TRUE(parameter(affine, "model.embed_affine.weight").eq(1).all().item<bool>());
  EXPECT_TRUE(parameter(affine, "model.embed_affine.bias").eq(0).all().item<bool>());
  const Tensor embeds = normal_by_id(at::arange(2), {5, 32}, 1, Stream::noise, 0), before = affine.hidden(embeds);
  parameter(affine, "model.embed_affine.weight").fill_(2);
  parameter(affine, "model.embed_affine.bias").fill_(0.5);
  EXPECT_LT(gap(affine.hidden(embeds / 2 - 0.25), before), 1e-5) << "weight e + bias";
  EXPECT_GT(gap(affine.hidden(embeds), before), 1e-2);
}

TEST(Anisotropy, KeepsTheCleanFunction) {
  const NoGrad no_grad;
  const auto model = small_model();
  const auto stretched = reparameterise(*model, {.spread = 20, .shift = 3, .seed = 4});
  EXPECT_LT(largest_logit_change(*model, *stretched), 1e-4);
  EXPECT_GT(gap(stretched->embedding_weight(), model->embedding_weight()), 1);
  // Once more, on top of the affine map that is there now.
  EXPECT_LT(largest_logit_change(*model, *reparameterise(*stretched, {.spread = 2, .shift = 1, .seed = 5})), 1e-4);
  // The control: an inverse that is a little off is seen.
  parameter(*stretched, "model.embed_affine.weight").mul_(1.01);
  EXPECT_GT(largest_logit_change(*model, *stretched), 1e-3);
  EXPECT_THROW(reparameterise(*small_model(true), {.spread = 2}), ConfigError);
}

TEST(Anisotropy, NormalisedNoiseDoesNotSeeItAndRawNoiseDoes) {
  const NoGrad no_grad;
  auto model = small_model();
  model->to(at::kDouble);
  const auto stretched = reparameterise(*model, {.spread = 20, .shift = 3, .seed = 4});
  const Tensor ids = at::arange(kFirstImage, kFirstImage + 12).view({1, 12});
  const Tensor eps = normal_by_id(at::arange(1), {12, 32}, 1, Stream::noise, 0).to(at::kDouble);
  const auto hidden = [&](const LlamaForCausalLM& m, Normalise normalise) {
    const EmbeddingNoise noise({.normalise = normalise}, m.embedding_weight(), kFirstImage);
    const Tensor t = at::full({1, 12}, 0.5, at::kDouble);
    return m.hidden(noise.denormalise(noise.add_noise(noise.normalise(m.embed(ids)), t, eps)));
  };
  EXPECT_LT(gap(hidden(*model, Normalise::per_dimension), hidden(*stretched, Normalise::per_dimension)), 1e-9);
  EXPECT_GT(gap(hidden(*model, Normalise::scalar), hidden(*stretched, Normalise::scalar)), 0.1);
  EXPECT_GT(gap(hidden(*model, Normalise::none), hidden(*stretched, Normalise::none)), 0.1);
}

TEST(Anisotropy, SignalToNoiseByDimension) {
  const auto model = small_model();
  const auto stretched = reparameterise(*model, {.spread = 20, .shift = 0, .seed = 4});
  const auto snr = [&](models::EmbeddingNoiseConfig c) {
    const Tensor table = stretched->embedding_weight();
    return signal_to_noise(EmbeddingNoise(c, table, kFirstImage), table, kFirstImage);
  };
  const SignalToNoise even = snr({.stats_rows = models::StatsRows::image}), raw = snr({.normalise = Normalise::none});
  EXPECT_NEAR(even.min, 1, 1e-5);
  EXPECT_NEAR(even.max, 1, 1e-5);
  EXPECT_GT(raw.max / raw.min, 50);
  EXPECT_LT(raw.max / raw.min, 400 * 1.5) << "20 squared, and what the table's own deviations differ by";
}

}  // namespace
}  // namespace fewstep
