// What the network is told: classes found in captions, dropped conditions and what takes their place, saving and
// loading.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "datasets/fashion_attributes.h"
#include "src/pipelines/conditioner.h"
#include "src/pipelines/conditioner_class.h"
#include "src/pipelines/conditioner_text.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"
#include "tests/support/scratch.h"

namespace fewstep::pipelines {
namespace {

using ::testing::HasSubstr;

const std::vector<std::string> kClasses = {"t-shirt", "trouser", "shirt", "ankle boot", "boot"};
const std::vector<std::string> kCorpus = {"a dark long dress", "a bright short shirt", "an ankle boot",
                                          "the wide trouser"};

ConditionInput captions(std::vector<std::string> texts) {
  ConditionInput in;
  in.captions = std::move(texts);
  in.micro = micro_rows(in.size(), 28, 32, std::vector<int64_t>{14, 16}, std::vector<int64_t>{3, 5});
  return in;
}

std::unique_ptr<Conditioner> class_conditioner(const ConditioningSettings& settings = {}) {
  ClassConditionerConfig config;
  config.dim = 8, config.settings = settings;
  return config.build({.class_names = kClasses, .seed = 3});
}

std::unique_ptr<Conditioner> text_conditioner(const ConditioningSettings& settings = {}) {
  TextConditionerConfig config;
  config.vocab_size = 280, config.length = 12, config.dim = 16, config.layers = 1, config.heads = 2,
  config.settings = settings;
  return config.build(
      {.train_tokenizer = [](int64_t size) { return text::BpeTokenizer::train(kCorpus, size); }, .seed = 3});
}

Tensor flags(std::vector<int64_t> values) { return at::tensor(values, at::kLong).to(at::kBool); }

TEST(FindClass, WholeWordsLongestName) {
  EXPECT_EQ(find_class(kClasses, "a dark long T-Shirt."), 0);
  EXPECT_EQ(find_class(kClasses, "a shirt, narrow"), 2);
  EXPECT_EQ(find_class(kClasses, "an ankle boot"), 3);  // the boot inside it does not count
  EXPECT_EQ(find_class(kClasses, "one boot"), 4);
  EXPECT_EQ(find_class(kClasses, "a boot and another boot"), 4);
  EXPECT_THAT(message_of<ConfigError>([] { find_class(kClasses, "shirts"); }), HasSubstr("none is named"));
  EXPECT_THAT(message_of<ConfigError>([] { find_class(kClasses, "a shirt over a trouser"); }),
              HasSubstr("more than one"));
  EXPECT_THAT(message_of<ConfigError>([] { find_class(kClasses, ""); }), HasSubstr("t-shirt, trouser"));
}

// The same answer as the data set's own parser, for every caption it can write.
TEST(FindClass, AgreesWithTheCaptionsOfFashionMnist) {
  std::vector<std::string> names(fashion_class_names().begin(), fashion_class_names().end());
  for (int64_t label = 0; label < kFashionClasses; ++label)
    for (int64_t form = 0; form < caption_template_count(); ++form)
      for (const auto tone : fashion_attribute_kinds()[0].words) {
        const Attributes attributes = {{"tone", std::string(tone)}, {"height", "long"}, {"width", "narrow"}};
        ASSERT_EQ(find_class(names, write_caption(form, label, attributes)), label)
            << write_caption(form, label, attributes);
      }
}

TEST(ClassConditioner, LabelsAndCaptionsGiveTheSameRows) {
  const auto c = class_conditioner();
  ConditionInput in = captions({"a shirt", "the ankle boot"});
  const Tensor by_caption = (*c)(in).context;
  EXPECT_EQ(by_caption.sizes(), at::IntArrayRef({2, 1, 8}));
  in.labels = at::tensor(std::vector<int64_t>{2, 3}, at::kLong);
  EXPECT_TRUE(by_caption.equal((*c)(in).context));
  in.labels = at::tensor(std::vector<int64_t>{2, -1}, at::kLong);
  EXPECT_THAT(message_of<DataError>([&] { (*c)(in); }), HasSubstr("label -1"));
}

TEST(ClassConditioner, NumbersInTheirOrder) {
  ConditioningSettings s;
  s.micro.aesthetic = true;
  const auto c = class_conditioner(s);
  const auto told = (*c)(captions({"boot"}));
  EXPECT_TRUE(told.numbers.equal(at::tensor(std::vector<float>{14, 16, 3, 5, 28, 32, 6}).view({1, 7})));
  EXPECT_FALSE(told.number_mask.defined());
  EXPECT_FALSE(told.pooled.defined());
  const auto null = c->null(captions({"boot"}));  // only the class is gone; the other branch's score
  EXPECT_TRUE(null.numbers.equal(at::tensor(std::vector<float>{14, 16, 3, 5, 28, 32, 2.5}).view({1, 7})));
  EXPECT_EQ(null.context.abs().sum().item<float>(), 0);
}

// Of a batch some samples of which have a score: the others are told the setting's, in training too.
TEST(ClassConditioner, SamplesWithoutAScoreAreToldTheSettings) {
  ConditioningSettings s;
  s.micro = {.size = false, .crop = false, .target = false, .aesthetic = true};
  s.aesthetic = 5.5, s.negative_aesthetic = 1.5;
  const auto c = class_conditioner(s);
  ConditionInput in = captions({"boot", "shirt", "trouser"});
  in.aesthetic = at::tensor(std::vector<float>{7.25, -1, 0});
  EXPECT_TRUE((*c)(in).numbers.equal(at::tensor(std::vector<float>{7.25, 5.5, 0}).view({3, 1})));
  EXPECT_TRUE(c->null(in).numbers.equal(at::tensor(std::vector<float>{7.25, 1.5, 0}).view({3, 1})));
  in.aesthetic = Tensor();
  EXPECT_TRUE((*c)(in).numbers.eq(5.5).all().item<bool>());
}

// Every key of the files that a conditioner reads, with a value of another type: the file, the key and the value are named.
TEST(ConditionerFiles, WrongTypesAreNamed) {
  const testing::ScratchFolder folder("conditioner-files");
  text_conditioner()->save(folder / "text"), class_conditioner()->save(folder / "class");
  struct Wrong {
    const char* model;
    const char* key;
    Json value;
    const char* message;
  };
  const Wrong cases[] = {{"text", "kind", 3, "kind: expected a string, found 3"},
                         {"text", "pooled", "yes", "pooled: expected true or false, found \"yes\""},
                         {"text", "null_text", 0, "null_text: expected a string, found 0"},
                         {"text", "micro", "all", "micro: expected a JSON object, found string"},
                         {"text", "micro", {{"size", 1}}, "micro: size: expected true or false, found 1"},
                         {"text", "aesthetic", "6", "aesthetic: expected a number, found \"6\""},
                         {"class", "class_names", "boot", "class_names: expected a list of strings, found \"boot\""},
                         {"class", "class_names", {1, 2}, "class_names: expected a list of strings, found [1,2]"}};
  for (const Wrong& wrong : cases) {
    const auto path = folder / wrong.model / "conditioner/conditioner_config.json";
    const Json good = read_json(path);
    Json bad = good;
    bad[wrong.key] = wrong.value;
    write_json(path, bad);
    const std::string message = message_of<DataError>([&] { Conditioner::load(folder / wrong.model, at::kCPU); });
    EXPECT_THAT(message, HasSubstr("conditioner_config.json: " + std::string(wrong.message)));
    write_json(path, good);
    EXPECT_NE(Conditioner::load(folder / wrong.model, at::kCPU), nullptr);
  }
}

TEST(ClassConditioner, DroppedGroupsBecomeTheirNull) {
  ConditionDrop drop;
  drop.text = flags({1, 0}), drop.crop = flags({0, 1}), drop.size = flags({1, 0});
  const auto zeros = (*class_conditioner())(captions({"boot", "shirt"}), drop);
  EXPECT_EQ(zeros.context[0].abs().sum().item<float>(), 0);
  EXPECT_GT(zeros.context[1].abs().sum().item<float>(), 0);
  EXPECT_TRUE(zeros.number_mask.equal(at::tensor(std::vector<float>{0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1}).view({2, 6})));
  ConditioningSettings s;
  s.null_numbers = NullValue::int_zero;
  const auto ints = (*class_conditioner(s))(captions({"boot", "shirt"}), drop);
  EXPECT_FALSE(ints.number_mask.defined());
  EXPECT_TRUE(
      ints.numbers.equal(at::tensor(std::vector<float>{0, 0, 3, 5, 28, 32, 14, 16, 0, 0, 28, 32}).view({2, 6})));
}

TEST(ClassConditioner, NullOfEverything) {
  const auto null = class_conditioner()->null(captions({"boot", "shirt"}), NullScope::all);
  EXPECT_EQ(null.context.abs().sum().item<float>(), 0);
  EXPECT_EQ(null.number_mask.abs().sum().item<float>(), 0);
}

TEST(TextConditioner, DroppedRowsEqualTheEmptyPrompt) {
  ConditioningSettings s;
  s.null_text = NullValue::empty_prompt;
  const auto c = text_conditioner(s);
  ConditionDrop drop;
  drop.text = flags({0, 1, 0}), drop.pooled = flags({1, 0, 0});
  const ConditionInput in = captions({"a dark dress", "an ankle boot", "the trouser"});
  const auto told = (*c)(in, drop), plain = (*c)(in), empty = (*c)(captions({""}));
  EXPECT_TRUE(at::allclose(told.context[1], empty.context[0]));
  EXPECT_TRUE(at::allclose(told.context[0], plain.context[0]));
  EXPECT_TRUE(at::allclose(told.pooled[0], empty.pooled[0]));
  EXPECT_TRUE(at::allclose(told.pooled[1], plain.pooled[1]));
  const auto null = c->null(captions({"a", "b"}));
  EXPECT_EQ(null.context.sizes(), at::IntArrayRef({2, 12, 16}));
  EXPECT_TRUE(at::allclose(null.context[1], empty.context[0]));
}

TEST(TextConditioner, GradientsReachTheEncoderAndRowsDoNotMix) {
  const auto c = text_conditioner();
  ASSERT_NE(c->trainable(), nullptr);
  c->trainable()->requires_grad(true);
  const auto told = (*c)(captions({"a dark dress", "an ankle boot"}));
  EXPECT_EQ(told.pooled.sizes(), at::IntArrayRef({2, 16}));
  (told.pooled[0].square().sum() + told.context[0].sum()).backward();
  double total = 0;
  for (const NamedTensor& p : c->trainable()->parameters())
    if (p.tensor.grad().defined()) total += p.tensor.grad().abs().sum().item<double>();
  EXPECT_GT(total, 0);
  const auto alone = (*c)(captions({"a dark dress"}));
  EXPECT_TRUE(at::allclose(alone.context[0], told.context[0], 1e-5, 1e-6));
}

TEST(Conditioners, SaveAndLoad) {
  const testing::ScratchFolder folder("conditioner");
  ConditioningSettings s;
  s.micro = {.size = true, .crop = false, .target = true, .aesthetic = true};
  s.null_numbers = NullValue::int_zero, s.negative_aesthetic = 1;
  const ConditionInput in = captions({"an ankle boot", "a shirt"});
  for (const auto& made : {class_conditioner(s), text_conditioner(s)}) {
    made->save(folder / "model");
    const auto loaded = Conditioner::load(folder / "model", at::kCPU);
    EXPECT_EQ(loaded->kind(), made->kind());
    EXPECT_EQ(loaded->settings().micro, s.micro);
    EXPECT_EQ(loaded->class_names(), made->class_names());
    const auto a = (*made)(in), b = (*loaded)(in), c = made->null(in), d = loaded->null(in);
    EXPECT_TRUE(a.context.equal(b.context));
    EXPECT_TRUE(a.numbers.equal(b.numbers));
    EXPECT_TRUE(c.context.equal(d.context));
    EXPECT_TRUE(c.numbers.equal(d.numbers));
  }
}

TEST(Conditioners, NetworkAndConditionsMustFit) {
  const auto c = text_conditioner();
  models::UNet2DConfig unet;
  unet.addition_time_embed_dim = 8;
  fit_conditioning(unet, *c);
  EXPECT_EQ(unet.cross_attention_dim, 16);
  EXPECT_EQ(unet.projection_class_embeddings_input_dim, 16 + 6 * 8);
  check_conditioning(unet, *c, "here");
  unet.projection_class_embeddings_input_dim -= 8;
  EXPECT_THAT(message_of<ConfigError>([&] { check_conditioning(unet, *c, "here"); }), HasSubstr("vector of 56 values"));
  unet.cross_attention_dim = 8;
  EXPECT_THAT(message_of<ConfigError>([&] { check_conditioning(unet, *c, "here"); }), HasSubstr("cross_attention_dim"));
}

TEST(Dropout, RatesAreIndependentAndKeyedById) {
  const Tensor ids = at::arange(20000);
  ConditionDropout rates;
  rates.text = 0.1, rates.pooled = 0.3, rates.size = 0.2, rates.crop = 0.2, rates.target = 0, rates.aesthetic = 1;
  const ConditionDrop drop = draw_drop(rates, ids, 5, 9);
  const auto share = [](const Tensor& t) { return t.to(at::kDouble).mean().item<double>(); };
  EXPECT_NEAR(share(drop.text), 0.1, 0.01);
  EXPECT_NEAR(share(drop.pooled), 0.3, 0.015);
  EXPECT_NEAR(share(drop.size.logical_and(drop.crop)), 0.04, 0.006);
  EXPECT_FALSE(drop.target.defined());
  EXPECT_TRUE(drop.aesthetic.all().item<bool>());
  rates.text = 0.5;
  EXPECT_TRUE(draw_drop(rates, ids.slice(0, 70, 90), 5, 9).size.equal(drop.size.slice(0, 70, 90)));
  EXPECT_FALSE(draw_drop(rates, ids, 5, 10).size.equal(drop.size));
  rates.pooled = -1;
  const ConditionDrop together = draw_drop(rates, ids, 5, 9);
  EXPECT_TRUE(together.pooled.equal(together.text));
}

}  // namespace
}  // namespace fewstep::pipelines
