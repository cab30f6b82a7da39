// JSON files of models: wrong types are named; what is written keeps its order.
#include "src/models/json_fields.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/models/autoencoder_kl.h"
#include "src/models/stability_checkpoint.h"
#include "src/models/unet2d_config.h"
#include "src/models/vq_model.h"
#include "tests/support/message_of.h"

namespace fewstep::models {
namespace {

using ::testing::HasSubstr;

TEST(JsonFields, WrongTypesAreNamedWithFileKeyAndValue) {
  struct Wrong {
    Json value;
    std::function<void(const JsonFields&)> read;
    const char* message;
  };
  const Wrong cases[] = {{"3", [](const auto& f) { f.value("key", int64_t{1}); }, "expected an integer, found \"3\""},
                         {3.5, [](const auto& f) { f.value("key", int64_t{1}); }, "expected an integer, found 3.5"},
                         {true, [](const auto& f) { f.value("key", 1.0); }, "expected a number, found true"},
                         {1, [](const auto& f) { f.value("key", false); }, "expected true or false, found 1"},
                         {{"a"}, [](const auto& f) { f.value("key", "b"); }, "expected a string, found [\"a\"]"},
                         {{1, "2"}, [](const auto& f) { f.value("key", std::vector<int64_t>()); }, "expected a list of integers, found [1,\"2\"]"},
                         {{1.5, nullptr}, [](const auto& f) { f.value("key", std::vector<double>()); }, "expected a list of numbers, found [1.5,null]"},
                         {"a", [](const auto& f) { f.value("key", std::vector<std::string>()); }, "expected a list of strings, found \"a\""},
                         {"a", [](const auto& f) { f.template at<double>("key"); }, "expected a number, found \"a\""}};
  for (const Wrong& wrong : cases) {
    const Json json = {{"key", wrong.value}};
    const JsonFields fields(json, "model/config.json");
    EXPECT_EQ(message_of<ConfigError>([&] { wrong.read(fields); }), "model/config.json: key: " + std::string(wrong.message));
  }
}

TEST(JsonFields, AbsentAndNullHaveTheDefaultUnlessTheyMustBeThere) {
  const Json json = {{"null", nullptr}, {"three", 3}};
  const JsonDataFields fields(json, "x.json");
  EXPECT_EQ(fields.value("null", 2.5), 2.5);
  EXPECT_EQ(fields.value("absent", "a"), "a");
  EXPECT_EQ(fields.value("three", 0.0), 3.0);
  EXPECT_EQ(fields.at<int64_t>("three"), 3);
  EXPECT_EQ(message_of<DataError>([&] { fields.at<int64_t>("null"); }), "x.json: null is missing");
  EXPECT_EQ(message_of<DataError>([] { JsonDataFields(Json::array(), "x.json"); }), "x.json: expected a JSON object, found array");
}

TEST(JsonFields, SchedulersSayWhatIsPredicted) {
  EXPECT_FALSE(scheduler_marks(Json::object(), "s").v_prediction());
  const SchedulerMarks v = scheduler_marks({{"prediction_type", "v_prediction"}, {"rescale_betas_zero_snr", true}}, "s");
  EXPECT_TRUE(v.v_prediction() && v.zero_terminal_snr);
  EXPECT_THAT(message_of<DataError>([] { scheduler_marks({{"prediction_type", 1}}, "scheduler_config.json"); }),
              HasSubstr("scheduler_config.json: prediction_type: expected a string, found 1"));
}

std::vector<std::string> keys_of(const Json& json, size_t from = 0) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : json.items()) keys.push_back(key);
  return {keys.begin() + static_cast<std::ptrdiff_t>(from), keys.end()};
}

// The order of keys is part of the files, and so of what their hashes name.
TEST(ConfigFiles, KeysKeepTheirOrder) {
  VqConfig vq;
  vq.patch_size = 2;
  EXPECT_EQ(keys_of(vq.to_json()),
            (std::vector<std::string>{"_class_name", "act_fn", "block_out_channels", "down_block_types", "force_upcast", "in_channels",
                                      "latent_channels", "layers_per_block", "lookup_from_codebook", "mid_block_add_attention",
                                      "norm_num_groups", "norm_type", "num_vq_embeddings", "out_channels", "sample_size", "scaling_factor",
                                      "up_block_types", "vq_embed_dim", "patch_size"}));
  AutoencoderKlConfig kl;
  kl.patch_size = 2;
  EXPECT_EQ(keys_of(kl.to_json()),
            (std::vector<std::string>{"_class_name", "act_fn", "block_out_channels", "down_block_types", "force_upcast", "in_channels",
                                      "latent_channels", "latents_mean", "latents_std", "layers_per_block", "mid_block_add_attention",
                                      "norm_num_groups", "out_channels", "sample_size", "scaling_factor", "shift_factor", "up_block_types",
                                      "use_post_quant_conv", "use_quant_conv", "patch_size"}));
  // Behind the class and the keys with the one value that is supported.
  EXPECT_EQ(keys_of(UNet2DConfig{}.to_json(), 22),
            (std::vector<std::string>{"act_fn", "addition_embed_type", "addition_time_embed_dim", "attention_head_dim", "block_out_channels",
                                      "center_input_sample", "conv_in_kernel", "conv_out_kernel", "cross_attention_dim", "down_block_types",
                                      "flip_sin_to_cos", "freq_shift", "in_channels", "layers_per_block", "mid_block_type", "norm_eps",
                                      "norm_num_groups", "out_channels", "projection_class_embeddings_input_dim", "resnet_time_scale_shift",
                                      "sample_size", "transformer_layers_per_block", "up_block_types", "upcast_attention",
                                      "use_linear_projection"}));
}

}  // namespace
}  // namespace fewstep::models
