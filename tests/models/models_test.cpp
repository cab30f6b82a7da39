#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/config/config.h"
#include "src/models/contrastive.h"
#include "src/models/llama.h"
#include "src/models/model.h"
#include "src/models/patch_discriminator.h"
#include "src/models/sequence_layout.h"
#include "src/models/vq_model.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"

namespace fewstep {
namespace {

using models::LlamaConfig;
using models::LlamaForCausalLM;
using testing::HasSubstr;

double max_difference(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

LlamaConfig small_llama() {
  LlamaConfig c;
  c.vocab_size = 37, c.hidden_size = 24, c.intermediate_size = 40, c.num_hidden_layers = 2;
  c.num_attention_heads = 4, c.num_key_value_heads = 2, c.head_dim = 8, c.initializer_range = 0.3;
  c.attention_bias = true, c.qk_norm = true;
  return c;
}

std::unique_ptr<LlamaForCausalLM> make_llama(const LlamaConfig& c) {
  auto model = std::make_unique<LlamaForCausalLM>(c);
  model->initialise(3);
  return model;
}

Tensor some_ids(int64_t rows, int64_t length, int64_t vocab) {
  return (at::arange(rows * length, at::kLong) * 7919 % vocab).view({rows, length});
}

std::vector<std::string> names_of(const NamedTensors& tensors) {
  std::vector<std::string> names;
  for (const auto& t : tensors) names.push_back(t.name);
  return names;
}

// --- Llama

TEST(Llama, HasTheNamesOfTransformers) {
  LlamaConfig c = small_llama();
  c.num_hidden_layers = 1;
  const auto names = names_of(make_llama(c)->parameters());
  const std::string layer = "model.layers.0.";
  std::vector<std::string> expected = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"};
  for (const char* p : {"q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias",
                        "o_proj.weight", "o_proj.bias", "q_norm.weight", "k_norm.weight"})
    expected.push_back(layer + "self_attn." + p);
  for (const char* p : {"mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight",
                        "post_attention_layernorm.weight"})
    expected.push_back(layer + p);
  EXPECT_THAT(names, testing::UnorderedElementsAreArray(expected));
}

TEST(Llama, TiedOutputLayerIsListedOnce) {
  LlamaConfig c = small_llama();
  c.tie_word_embeddings = true;
  const auto model = make_llama(c);
  EXPECT_THAT(names_of(model->parameters()), testing::Not(testing::Contains("lm_head.weight")));
  const Tensor hidden = at::randn({1, 2, c.hidden_size});
  EXPECT_TRUE(model->logits(hidden).equal(at::linear(hidden, model->embedding_weight())));
}

TEST(Llama, InitialisesWithTheRangeOfTheConfig) {
  LlamaConfig c = small_llama();
  c.hidden_size = 64, c.intermediate_size = 256, c.initializer_range = 0.05;
  const auto model = make_llama(c);
  for (const auto& [name, t] : model->parameters()) {
    if (name.ends_with("norm.weight")) EXPECT_TRUE(t.eq(1).all().item<bool>()) << name;
    else if (name.ends_with("bias")) EXPECT_TRUE(t.eq(0).all().item<bool>()) << name;
    else EXPECT_NEAR(t.std().item<double>(), 0.05, 0.005) << name;
  }
}

class LlamaDecoding : public testing::TestWithParam<bool> {};  // packed weights or not

TEST_P(LlamaDecoding, CachedInPiecesEqualsFull) {
  const NoGrad no_grad;
  const auto c = small_llama();
  const auto model = make_llama(c);
  if (GetParam()) model->prepare_inference();
  const Tensor ids = some_ids(3, 11, c.vocab_size), full = (*model)(ids);
  models::KvCache cache = model->make_cache(3, 11);
  int64_t at = 0;
  for (const int64_t n : {4, 1, 3, 1, 2}) {
    const Tensor part = model->logits(model->hidden(model->embed(ids.narrow(1, at, n)), {.positions = {}, .mask = {}, .cache = &cache}));
    EXPECT_LT(max_difference(part, full.narrow(1, at, n)), 1e-4) << "positions from " << at;
    at += n;
  }
  EXPECT_EQ(cache.length, 11);
  cache.truncate(4);  // a rejected draft: the same positions again, with other tokens in between
  const Tensor again = model->logits(model->hidden(model->embed(ids.narrow(1, 4, 7)), {.positions = {}, .mask = {}, .cache = &cache}));
  EXPECT_LT(max_difference(again, full.narrow(1, 4, 7)), 1e-4);
  EXPECT_THROW(model->hidden(model->embed(ids.narrow(1, 0, 1)), {.positions = {}, .mask = {}, .cache = &cache}), Error);
}

TEST_P(LlamaDecoding, RowsDoNotSeeEachOther) {
  const NoGrad no_grad;
  const auto c = small_llama();
  const auto model = make_llama(c);
  if (GetParam()) model->prepare_inference();
  const Tensor ids = some_ids(4, 9, c.vocab_size), together = (*model)(ids);
  for (int64_t row = 0; row < 4; ++row)
    EXPECT_LT(max_difference((*model)(ids.narrow(0, row, 1)), together.narrow(0, row, 1)), 1e-4) << row;
  models::KvCache cache = model->make_cache(4, 9);
  model->hidden(model->embed(ids.narrow(1, 0, 8)), {.positions = {}, .mask = {}, .cache = &cache});
  const Tensor rows = at::tensor({2, 0}, at::kLong);
  cache.select(rows);
  const Tensor last = model->logits(model->hidden(model->embed(ids.narrow(1, 8, 1).index_select(0, rows)), {.positions = {}, .mask = {}, .cache = &cache}));
  EXPECT_LT(max_difference(last, together.narrow(1, 8, 1).index_select(0, rows)), 1e-4);
}
INSTANTIATE_TEST_SUITE_P(PackedOrNot, LlamaDecoding, testing::Bool());

// Rows of different lengths in one pass: each has its own places in the cache, and leaves garbage behind its end.
TEST_P(LlamaDecoding, RowsWithTheirOwnSlotsEqualSingleRows) {
  const NoGrad no_grad;
  const auto c = small_llama();
  const auto model = make_llama(c);
  if (GetParam()) model->prepare_inference();
  const Tensor ids = some_ids(3, 9, c.vocab_size), full = (*model)(ids);
  models::KvCache cache = model->make_cache(3, 11);
  for (auto* side : {&cache.keys, &cache.values})
    for (Tensor& t : *side) t.fill_(100);  // seen by nobody
  // Row b has length[b] tokens; every pass feeds `count` from there on.
  const auto feed = [&](const std::vector<int64_t>& length, int64_t count) {
    const Tensor start = at::tensor(length, at::kLong).unsqueeze(1), at_token = start + at::arange(count, at::kLong);  // [3, count]
    const int64_t keys = start.max().item<int64_t>() + count;
    const Tensor mask = at::arange(keys, at::kLong).le(at_token.unsqueeze(2)).unsqueeze(1);
    const Tensor x = model->embed(ids.gather(1, at_token));
    const models::ForwardOptions options{.positions = at_token, .mask = mask, .cache = &cache, .slots = at_token, .keys = keys};
    const Tensor l = model->logits(model->hidden(x, options));
    EXPECT_LT(max_difference(l, full.gather(1, at_token.unsqueeze(2).expand({-1, -1, c.vocab_size}))), 1e-4);
  };
  feed({0, 0, 0}, 5);
  feed({2, 5, 4}, 3);  // rows 0 and 2 write over what they had behind
  feed({4, 8, 5}, 1);
  EXPECT_EQ(cache.length, 0);
  const Tensor one = at::zeros({3, 1}, at::kLong), x = model->embed(ids.narrow(1, 0, 1));
  models::ForwardOptions options{.positions = one, .cache = &cache, .slots = one, .keys = 1};
  EXPECT_THAT(message_of([&] { model->hidden(x, options); }), HasSubstr("mask"));
  options.mask = one.ge(0).view({3, 1, 1, 1}), options.keys = 12;
  EXPECT_THAT(message_of([&] { model->hidden(x, options); }), HasSubstr("capacity 11"));
}

TEST(Llama, RotatedKeysAreThoseOfAnotherPosition) {
  const NoGrad no_grad;
  LlamaConfig c = small_llama();
  c.num_hidden_layers = 1;
  const auto model = make_llama(c);
  const Tensor x = model->embed(some_ids(2, 1, c.vocab_size));
  const auto keys_at = [&](const Tensor& positions) {  // [2, 1]
    models::KvCache cache = model->make_cache(2, 1);
    model->hidden(x, {.positions = positions, .mask = at::ones({1, 1, 1, 1}, at::kBool), .cache = &cache,
                      .slots = at::zeros({2, 1}, at::kLong), .keys = 1});
    return cache.keys[0].clone();
  };
  const Tensor there = at::tensor({3, 7}, at::kLong).view({2, 1}), first = keys_at(at::zeros({2, 1}, at::kLong));
  EXPECT_LT(max_difference(model->rotate(first, there), keys_at(there)), 1e-5);
  EXPECT_GT(max_difference(first, keys_at(there)), 1e-2);
}

// A window of positions and a mask as speculative decoders give them: left padding shifts positions and is masked.
TEST(Llama, PositionsAndMaskReproduceAnUnpaddedRow) {
  const NoGrad no_grad;
  const auto c = small_llama();
  const auto model = make_llama(c);
  const Tensor ids = some_ids(1, 6, c.vocab_size), plain = (*model)(ids);
  const Tensor padded = at::constant_pad_nd(ids, {3, 0}, 5);
  const Tensor positions = (at::arange(9, at::kLong) - 3).clamp_min(0).unsqueeze(0);
  Tensor mask = at::ones({9, 9}, at::kBool).tril();
  mask.narrow(1, 0, 3).copy_(at::eye(9, at::kBool).narrow(1, 0, 3));  // padding is seen by itself only
  const Tensor hidden = model->hidden(model->embed(padded), {.positions = positions, .mask = mask.view({1, 1, 9, 9}), .cache = nullptr});
  EXPECT_LT(max_difference(model->logits(hidden).narrow(1, 3, 6), plain), 1e-4);
}

TEST(Llama, RecomputeGivesTheSameGradients) {
  const auto c = small_llama();
  const auto model = make_llama(c);
  const Tensor ids = some_ids(2, 7, c.vocab_size);
  std::map<std::string, Tensor> first;
  for (const bool recompute : {false, true}) {
    model->set_recompute(recompute);
    for (auto& p : model->parameters()) p.tensor.mutable_grad() = Tensor();
    model->token_loss(model->hidden(model->embed(ids)), ids).mean().backward();
    for (const auto& p : model->parameters()) {
      if (recompute) EXPECT_TRUE(p.tensor.grad().equal(first.at(p.name))) << p.name;
      else first[p.name] = p.tensor.grad().clone();
    }
  }
}

TEST(Llama, TokenLossIgnoresNegativeTargets) {
  const auto c = small_llama();
  const auto model = make_llama(c);
  const Tensor ids = some_ids(2, 5, c.vocab_size);
  Tensor targets = ids.clone();
  targets.index_put_({0, 2}, -1);
  const Tensor hidden = model->hidden(model->embed(ids));
  const Tensor loss = model->token_loss(hidden, targets);
  const Tensor expected = -at::log_softmax(model->logits(hidden), -1).gather(2, ids.unsqueeze(2)).squeeze(2);
  EXPECT_EQ(loss.index({0, 2}).item<double>(), 0.0);
  EXPECT_LT(max_difference(loss * (targets >= 0), expected * (targets >= 0)), 1e-5);
}

TEST(LlamaConfig, ReadsBothSpellingsOfRopeAndRefusesOthersByName) {
  Json json = small_llama().to_json();
  const auto theta = [&] { return LlamaConfig::from_json(json, "c").rope_theta; };
  json.erase("rope_parameters");
  json["rope_theta"] = 123.0;
  EXPECT_EQ(theta(), 123.0);
  json.erase("rope_theta");
  json["rope_parameters"] = Json{{"rope_theta", 456.0}, {"rope_type", "default"}};
  EXPECT_EQ(theta(), 456.0);
  json["rope_parameters"]["rope_type"] = "llama3";
  EXPECT_THAT(message_of(theta), testing::AllOf(HasSubstr("rope_type"), HasSubstr("llama3")));
  json.erase("rope_parameters");
  json["rope_scaling"] = Json{{"type", "linear"}, {"factor", 2.0}};
  EXPECT_THAT(message_of(theta), HasSubstr("linear"));
  json["rope_scaling"] = nullptr;
  json["hidden_act"] = "gelu";
  EXPECT_THAT(message_of(theta), HasSubstr("gelu"));
  json["hidden_act"] = "silu";
  json["num_key_value_heads"] = 3;
  EXPECT_THAT(message_of(theta), HasSubstr("num_key_value_heads 3"));
  json["num_key_value_heads"] = "four";
  EXPECT_THAT(message_of(theta), HasSubstr("expected an integer"));
}

TEST(LlamaConfig, SurvivesJson) {
  LlamaConfig c = small_llama();
  c.rope_theta = 77.0, c.mlp_bias = true, c.bos_token_id = 4;
  const Json json = c.to_json();
  EXPECT_EQ(LlamaConfig::from_json(json, "c").to_json(), json);
}

// --- VQ

models::VqConfig small_vq() {
  models::VqConfig c;
  c.in_channels = c.out_channels = 1;
  c.block_out_channels = {8, 16}, c.norm_num_groups = 4, c.latent_channels = 4, c.vq_embed_dim = 3, c.num_vq_embeddings = 20;
  return c;
}

TEST(VQModel, QuantizeFindsTheNearestCode) {
  models::VQModel model(small_vq());
  model.initialise(1);
  at::manual_seed(0);
  const Tensor z = at::randn({2, 3, 4, 5}) * 0.05;
  const auto q = model.quantize(z);
  const Tensor flat = z.permute({0, 2, 3, 1}).reshape({-1, 3});
  const Tensor distance = at::cdist(flat.to(at::kDouble), model.codebook().to(at::kDouble));
  EXPECT_TRUE(q.indices.flatten().equal(distance.argmin(1)));
  EXPECT_TRUE(q.latents.equal(model.codes(q.indices)));
  EXPECT_EQ(q.latents.sizes(), z.sizes());
}

TEST(VQModel, ShapesFollowFactorAndPatch) {
  for (const int64_t patch : {1, 2}) {
    auto c = small_vq();
    c.patch_size = patch;
    models::VQModel model(c);
    model.initialise(1);
    const Tensor images = at::rand({2, 1, 16, 24}) * 2 - 1, z = model.encode(images);
    EXPECT_EQ(c.factor(), 2 * patch);
    EXPECT_EQ(z.sizes(), (std::vector<int64_t>{2, 3, 16 / c.factor(), 24 / c.factor()}));
    EXPECT_EQ(model.decode(z).sizes(), images.sizes());
    EXPECT_EQ(models::VqConfig::from_json(c.to_json(), "c").to_json(), c.to_json());
    EXPECT_THAT(message_of([&] { model.encode(at::zeros({1, 1, 15, 16})); }), HasSubstr("multiples of"));
  }
}

TEST(VQModel, TheCodebookIsNoParameter) {
  models::VQModel model(small_vq());
  EXPECT_THAT(names_of(model.parameters()), testing::Not(testing::Contains("quantize.embedding.weight")));
  EXPECT_THAT(names_of(model.state()), testing::Contains("quantize.embedding.weight"));
}

TEST(PatchDiscriminator, GivesAMapOfLogits) {
  for (const int64_t groups : {0, 4}) {
    models::PatchDiscriminator d({.in_channels = 1, .channels = 8, .layers = 2, .norm_groups = groups});
    d.initialise(1);
    EXPECT_EQ(d(at::zeros({3, 1, 32, 32})).sizes(), (std::vector<int64_t>{3, 1, 8, 8}));
  }
}

// --- encoders

TEST(ConvEncoder, FeaturesAreCalibrated) {
  models::ConvEncoderConfig c;
  c.auxiliary = {"noise", "blur"};
  models::ConvEncoder encoder(c);
  encoder.initialise(5);
  at::manual_seed(1);
  const Tensor images = at::rand({64, 1, 32, 32}) * 2 - 1;
  const auto out = encoder(images);
  EXPECT_EQ(c.feature_dim(), 16 + 32 + 64 + 64);
  EXPECT_EQ(out.raw.sizes(), (std::vector<int64_t>{64, 176}));
  EXPECT_EQ(out.logits.sizes(), (std::vector<int64_t>{64, 10}));
  EXPECT_EQ(out.auxiliary.sizes(), (std::vector<int64_t>{64, 2}));
  EXPECT_TRUE(encoder.features(images).equal(out.raw));
  encoder.calibrate(out.raw);
  const Tensor f = encoder.features(images);
  EXPECT_LT(f.mean(0).abs().max().item<double>(), 1e-4);
  EXPECT_EQ(models::ConvEncoderConfig::from_json(c.to_json(), "c").to_json(), c.to_json());
  c.embedding_dim = 200;
  EXPECT_THAT(message_of([&] { c.validate("c"); }), HasSubstr("at most 256"));
}

TEST(Contrastive, EmbeddingsAreUnitAndPaddingDoesNotCount) {
  for (const int64_t layers : {0, 2}) {
    models::ContrastiveConfig c;
    c.image.classes = 0;
    c.vocab_size = 30, c.pad_token_id = 3, c.text_layers = layers;
    models::ContrastiveModel model(c);
    model.initialise(2);
    const Tensor short_ids = at::tensor({5, 9, 2}, at::kLong).view({1, 3});
    const Tensor long_ids = at::constant_pad_nd(short_ids, {0, 5}, 3);
    EXPECT_LT(max_difference(model.text_embeddings(short_ids), model.text_embeddings(long_ids)), 1e-5);
    EXPECT_TRUE(model.text_embeddings(at::full({1, 4}, 3, at::kLong)).isfinite().all().item<bool>());
    const Tensor e = model.image_embeddings(at::rand({4, 1, 32, 32}));
    EXPECT_LT((e.square().sum(1) - 1).abs().max().item<double>(), 1e-5);
    EXPECT_NEAR(model.scale().item<double>(), 10.0, 1e-4);
    EXPECT_EQ(models::ContrastiveConfig::from_json(c.to_json(), "c").to_json(), c.to_json());
  }
}

// --- the table and its folders

template <class Model, class Config>
void expect_round_trip(const Config& config) {
  Model model(config);
  model.initialise(11);
  const auto folder = std::filesystem::temp_directory_path() / fmt::format("fewstep-models-{}", ::getpid());
  models::save_model(folder, model, config.to_json());
  const auto loaded = models::load_model(folder);
  std::filesystem::remove_all(folder);
  ASSERT_NE(dynamic_cast<Model*>(loaded.get()), nullptr);
  EXPECT_FALSE(loaded->training());
  const auto a = model.state(), b = loaded->state();
  ASSERT_EQ(names_of(a), names_of(b));
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(a[i].tensor.equal(b[i].tensor)) << a[i].name;
}

TEST(Models, EveryKindSavesAndLoads) {
  expect_round_trip<LlamaForCausalLM>(small_llama());
  LlamaConfig tied = small_llama();
  tied.tie_word_embeddings = true;
  expect_round_trip<LlamaForCausalLM>(tied);
  expect_round_trip<models::VQModel>(small_vq());
  expect_round_trip<models::ConvEncoder>(models::ConvEncoderConfig{});
  expect_round_trip<models::ContrastiveModel>(models::ContrastiveConfig{});
}

TEST(Models, UnknownClassIsAnsweredWithTheKnownOnes) {
  EXPECT_THAT(message_of([] { models::find_model_kind(Json{{"architectures", {"LlamaForCausalLm"}}}, "x/config.json"); }),
              testing::AllOf(HasSubstr("x/config.json"), HasSubstr("did you mean 'LlamaForCausalLM'")));
  EXPECT_THAT(message_of([] { models::find_model_kind(Json::object(), "x/config.json"); }), HasSubstr("_class_name"));
}

// --- sequence layout

TEST(SequenceLayout, RowsArePromptThenImage) {
  models::SequenceLayout l;
  l.text_vocab = 10, l.pad_id = 2, l.codebook = 5, l.caption_length = 3, l.grid_height = 2, l.grid_width = 2;
  EXPECT_EQ(l.vocab_size(), 16);
  EXPECT_EQ(l.prompt(std::vector<int64_t>{7, 8}), (std::vector<int64_t>{7, 8, 2, 10}));
  EXPECT_EQ(l.prompt(std::vector<int64_t>{7, 8, 9, 1}), (std::vector<int64_t>{7, 8, 9, 10}));
  EXPECT_EQ(l.unconditional_prompt(), (std::vector<int64_t>{2, 2, 2, 10}));
  const Tensor codes = at::tensor({0, 1, 2, 4}, at::kLong).view({1, 2, 2});
  const Tensor rows = l.rows(l.prompts({{7}}), codes);
  EXPECT_TRUE(rows.equal(at::tensor({7, 2, 2, 10, 11, 12, 13, 15}, at::kLong).view({1, 8})));
  EXPECT_TRUE(l.indices(l.tokens(codes)).equal(codes));
  EXPECT_TRUE(l.forced_codes().eq(-1).all().item<bool>());
  EXPECT_THROW(l.prompt(std::vector<int64_t>{10}), DataError);
  EXPECT_EQ(models::SequenceLayout::from_json(l.to_json(), "l").to_json(), l.to_json());
}

TEST(SequenceLayout, RowEndsCloseEveryRow) {
  models::SequenceLayout l;
  l.text_vocab = 10, l.pad_id = 2, l.codebook = 5, l.caption_length = 1, l.grid_height = 2, l.grid_width = 2, l.row_end = true;
  EXPECT_EQ(l.image_vocab(), 6);
  EXPECT_EQ(l.vocab_size(), 17);
  EXPECT_EQ(l.row_length(), 3);
  EXPECT_EQ(l.sequence_length(), 2 + 6);
  const Tensor codes = at::tensor({0, 1, 2, 4}, at::kLong).view({1, 2, 2});
  EXPECT_TRUE(l.tokens(codes).equal(at::tensor({0, 1, 5, 2, 4, 5}, at::kLong).view({1, 6})));
  EXPECT_TRUE(l.tokens(codes.flatten(1)).equal(l.tokens(codes)));
  EXPECT_TRUE(l.indices(l.tokens(codes)).equal(codes));
  EXPECT_TRUE(l.rows(l.prompts({{7}}), codes).equal(at::tensor({7, 10, 11, 12, 16, 13, 15, 16}, at::kLong).view({1, 8})));
  EXPECT_TRUE(l.forced_codes().equal(at::tensor({-1, -1, 5, -1, -1, 5}, at::kLong)));
  EXPECT_EQ(models::SequenceLayout::from_json(l.to_json(), "l").to_json(), l.to_json());
  EXPECT_THAT(message_of([&] { l.check(-1, -1, 16, "here"); }), HasSubstr("17 (10 text tokens + 1 + 5 image codes + 1 row end)"));
}

TEST(SequenceLayout, MismatchNamesBothValues) {
  models::SequenceLayout l;
  l.text_vocab = 10, l.codebook = 5;
  l.check(10, 5, 16, "here");
  l.check(-1, -1, -1, "here");
  EXPECT_THAT(message_of([&] { l.check(11, 5, 16, "here"); }), testing::AllOf(HasSubstr("11"), HasSubstr("10")));
  EXPECT_THAT(message_of([&] { l.check(10, 6, 16, "here"); }), testing::AllOf(HasSubstr("6 codes"), HasSubstr("5")));
  EXPECT_THAT(message_of([&] { l.check(10, 5, 17, "here"); }), testing::AllOf(HasSubstr("17"), HasSubstr("16")));
  EXPECT_THROW(l.check(10, 5, 17, "here"), ConfigError);
}

}  // namespace
}  // namespace fewstep
