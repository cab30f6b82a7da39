// LoRA files: names of whole networks both ways, one strength in every form, equal bytes, errors by name.
#include "src/models/lora_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <set>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/json.h"
#include "src/io/safetensors.h"
#include "src/models/unet2d.h"
#include "src/nn/lora.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/support/message_of.h"
#include "tests/support/scratch.h"
#include "tests/support/small_stability.h"

namespace fewstep::models {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr LoraForm kForms[] = {LoraForm::peft, LoraForm::kohya, LoraForm::kohya_sgm};

// The layers that an adapter without targets is put beside.
std::vector<std::string> adapted_layers(nn::Module& module) {
  nn::add_adapter(module, {.name = "names", .rank = 1}, 0);
  std::vector<std::string> out;
  for (const NamedTensor& t : module.adapter("names"))
    if (t.name.ends_with(".lora_A.weight")) out.push_back(t.name.substr(0, t.name.size() - 14));
  nn::remove_adapter(module, "names");
  return out;
}

std::vector<std::string> layers_of(const nn::Module& module) {
  std::vector<std::string> names;
  for (const NamedTensor& t : module.state()) names.push_back(t.name);
  return layers_with_weights(names);
}

void expect_both_ways(const LoraNames& names, const std::vector<std::string>& layers, LoraForm form) {
  std::set<std::string> seen;
  for (const std::string& layer : layers) {
    const std::string name = names.in_file(layer, form);
    EXPECT_TRUE(seen.insert(name).second) << name << " stands for two layers";
    EXPECT_EQ(names.layer_of(name), layer) << name;
    if (form != LoraForm::peft) {
      EXPECT_EQ(name.find('.'), std::string::npos) << name;
    }
  }
  EXPECT_EQ(seen.size(), layers.size());
}

TEST(LoraNames, EveryLayerOfSdxlBothWays) {
  const nn::BuildScope meta(at::kMeta);
  UNet2DConditionModel unet(sdxl_base_config());
  const std::vector<std::string> layers = adapted_layers(unet);
  // 70 transformer blocks of 10, 11 x 2 around them, 17 resnets of 3, shortcuts, samplers, ends, embeddings.
  ASSERT_EQ(layers.size(), 794u);
  const LoraNames names("unet", layers_of(unet), "test");
  EXPECT_TRUE(names.sgm_blocks_are_clear_to_diffusers());
  for (const LoraForm form : kForms) expect_both_ways(names, layers, form);
  // Written down from files that DMD2, PCM and sd-scripts publish.
  const std::string q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", out = "up_blocks.0.attentions.2.transformer_blocks.9.attn2.to_out.0";
  EXPECT_EQ(names.in_file(q, LoraForm::peft), "unet." + q);
  EXPECT_EQ(names.in_file(q, LoraForm::kohya), "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q");
  EXPECT_EQ(names.in_file(q, LoraForm::kohya_sgm), "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q");
  EXPECT_EQ(names.in_file(out, LoraForm::kohya_sgm), "lora_unet_output_blocks_2_1_transformer_blocks_9_attn2_to_out_0");
  const std::pair<const char*, const char*> kSgm[] = {
      {"conv_in", "lora_unet_input_blocks_0_0"},
      {"down_blocks.0.resnets.1.time_emb_proj", "lora_unet_input_blocks_2_0_emb_layers_1"},
      {"down_blocks.0.downsamplers.0.conv", "lora_unet_input_blocks_3_0_op"},
      {"down_blocks.1.resnets.0.conv_shortcut", "lora_unet_input_blocks_4_0_skip_connection"},
      {"mid_block.resnets.1.conv2", "lora_unet_middle_block_2_out_layers_3"},
      {"mid_block.attentions.0.proj_in", "lora_unet_middle_block_1_proj_in"},
      {"up_blocks.1.upsamplers.0.conv", "lora_unet_output_blocks_5_2_conv"},
      {"up_blocks.2.resnets.2.conv1", "lora_unet_output_blocks_8_0_in_layers_2"},
      {"time_embedding.linear_2", "lora_unet_time_embed_2"},
      {"add_embedding.linear_1", "lora_unet_label_emb_0_0"},
      {"conv_out", "lora_unet_out_2"}};
  for (const auto& [ours, theirs] : kSgm) EXPECT_EQ(names.in_file(ours, LoraForm::kohya_sgm), theirs);
  // The one name that diffusers' reader of kohya files knows by sgm's only.
  EXPECT_EQ(names.in_file("add_embedding.linear_1", LoraForm::kohya), "lora_unet_label_emb_0_0");
  for (const char* spelling : {"base_model.model.", "unet.", "lora_unet_", "base_model.model.unet.", "lycoris_", ""}) EXPECT_EQ(names.layer_of(spelling + q), q) << spelling;
  EXPECT_EQ(names.layer_of("diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q"), q);
  EXPECT_EQ(names.layer_of("lora_te1_text_model_encoder_layers_0_mlp_fc1"), std::nullopt);
  EXPECT_EQ(names.layer_of("unet.down_blocks.1.attentions.0.transformer_blocks.7.attn1.to_q"), std::nullopt);
}

TEST(LoraNames, OtherNetworksOfStability) {
  const nn::BuildScope meta(at::kMeta);
  UNet2DConditionModel refiner(sdxl_refiner_config()), first(support::small_unet_config(support::SmallRelease::version1));
  for (UNet2DConditionModel* unet : {&refiner, &first}) {
    const LoraNames names("unet", layers_of(*unet), "test");
    EXPECT_FALSE(names.sgm_blocks_are_clear_to_diffusers());
    for (const LoraForm form : kForms) expect_both_ways(names, adapted_layers(*unet), form);
  }
}

// By the table: there is no such network here.
TEST(LoraNames, EveryLayerOfQwenImageBothWays) {
  const std::vector<std::string> layers = qwen_image_layers();
  ASSERT_EQ(layers.size(), 846u);  // linear layers of diffusers' QwenImageTransformer2DModel
  const LoraNames names("transformer", layers, "test");
  for (const LoraForm form : {LoraForm::peft, LoraForm::kohya}) expect_both_ways(names, layers, form);
  const std::string out = "transformer_blocks.59.attn.to_add_out";
  EXPECT_EQ(names.in_file(out, LoraForm::peft), "transformer." + out);
  EXPECT_EQ(names.in_file(out, LoraForm::kohya), "lora_unet_transformer_blocks_59_attn_to_add_out");
  EXPECT_EQ(names.in_file("norm_out.linear", LoraForm::kohya), "lora_unet_norm_out_linear");
  for (const char* spelling : {"", "transformer.", "diffusion_model.", "lora_unet_", "lycoris_", "transformer.transformer."}) EXPECT_EQ(names.layer_of(spelling + out), out);
  EXPECT_THAT(message_of<ConfigError>([&] { names.in_file(out, LoraForm::kohya_sgm); }),
              AllOf(HasSubstr("'transformer_blocks.59.attn.to_add_out' has no name among sgm's blocks"), HasSubstr("--kohya-names diffusers")));
}

TEST(LoraNames, RefusesWhatFilesCannotSay) {
  EXPECT_THAT(message_of<ConfigError>([] { LoraNames("vae", {"conv_in"}, "model/vae"); }), HasSubstr("model/vae: LoRA files have names for the layers of 'unet' and 'transformer'"));
  EXPECT_THAT(message_of<ConfigError>([] { LoraNames("transformer", {"a_b.c", "a.b_c"}, "here"); }), HasSubstr("have one name in LoRA files, 'a_b_c'"));
  const LoraNames odd("unet", {"blocks.0.to_q"}, "here");
  EXPECT_EQ(odd.in_file("blocks.0.to_q", LoraForm::kohya), "lora_unet_blocks_0_to_q");
  EXPECT_THAT(message_of<ConfigError>([&] { odd.in_file("blocks.0.to_q", LoraForm::kohya_sgm); }),
              AllOf(HasSubstr("has no name among sgm's blocks"), HasSubstr("not those of diffusers' UNet2DConditionModel")));
  EXPECT_THAT(message_of<ConfigError>([&] { odd.in_file("blocks.1.to_q", LoraForm::peft); }), HasSubstr("'blocks.1.to_q' is no layer of the unet"));
}

// A network with an adapter of rank 4 and alpha 6 on every linear layer and convolution.
class LoraFiles : public ::testing::Test {
 protected:
  LoraFiles() : unet(config()), names("unet", layers_of(unet), "test") {
    const NoGrad no_grad;
    unet.initialise(3);
    nn::add_adapter(unet, {.name = "student", .rank = 4, .alpha = 6}, 5);
    int64_t id = 0;
    for (const NamedTensor& t : unet.adapter("student")) {
      at::Generator generator = generator_for(7, Stream::init, 0, id++);
      t.tensor.normal_(0, 0.2, generator);
      LoraLayer& layer = layers[t.name.substr(0, t.name.size() - 14)];
      layer.alpha = 6;
      (t.name.ends_with(".lora_A.weight") ? layer.a : layer.b) = t.tensor.detach();
      peft["base_model.model." + t.name] = t.tensor.detach();
    }
  }
  static UNet2DConfig config() {
    UNet2DConfig c = support::small_unet_config(support::SmallRelease::base);
    c.block_out_channels = {32, 32, 64}, c.attention_head_dim = {1, 1, 2}, c.cross_attention_dim = 24, c.projection_class_embeddings_input_dim = 24 + 6 * 256;
    return c;
  }
  fs::path write(const std::string& name, const TensorMap& tensors, const std::map<std::string, std::string>& metadata = {}) const {
    io::write_safetensors(folder / name, tensors, metadata);
    return folder / name;
  }
  // Largest difference of any weight between the file laid over the network and the adapter merged by our own code.
  double error_of(const fs::path& file, double strength = 1) const {
    const TensorMap got = with_lora(unet, read_lora(file, names).layers, strength, "test"), want = nn::merged_state(unet, "student", strength);
    EXPECT_EQ(got.size(), want.size());
    double error = 0;
    for (const auto& [name, t] : want) error = std::max(error, (got.at(name) - t).abs().max().item<double>());
    return error;
  }
  std::string says(const fs::path& file) const {
    return message_of<DataError>([&] { read_lora(file, names); });
  }

  const testing::ScratchFolder folder{"lora-files"};
  UNet2DConditionModel unet;
  LoraNames names;
  LoraLayers layers;
  TensorMap peft;
};

TEST_F(LoraFiles, OneStrengthInEveryForm) {
  const TensorMap plain = with_lora(unet, {}, 1, "test");
  double moved = 0;
  for (const auto& [name, t] : nn::merged_state(unet, "student")) moved = std::max(moved, (plain.at(name) - t).abs().max().item<double>());
  ASSERT_GT(moved, 0.3) << "the adapter must matter";
  for (const LoraForm form : kForms) {
    const fs::path file = write(fmt::format("{}.safetensors", static_cast<int>(form)), lora_tensors(layers, names, form));
    EXPECT_LE(error_of(file), 1e-6);
    EXPECT_LE(error_of(file, 0.3), 1e-6);
    for (const auto& [layer, l] : read_lora(file, names).layers) EXPECT_EQ(l.alpha, form == LoraForm::peft ? 4 : 6) << layer;
  }
  // What our runs and PEFT save: alpha in adapter_config.json.
  make_directories(folder / "adapter");
  write("adapter/adapter_model.safetensors", peft);
  write_json(folder / "adapter/adapter_config.json", {{"r", 4}, {"lora_alpha", 6}, {"use_dora", false}});
  EXPECT_LE(error_of(folder / "adapter"), 1e-6);
  write_json(folder / "adapter/adapter_config.json", {{"r", 4}, {"lora_alpha", 4}, {"alpha_pattern", {{"conv_in", 6}}}});
  const LoraLayers patterned = read_lora(folder / "adapter", names).layers;
  EXPECT_EQ(patterned.at("conv_in").alpha, 6);
  EXPECT_EQ(patterned.at("conv_out").alpha, 4);
}

// A 1 x 1 convolution's adapter has two more dimensions there than a linear layer's here, and older files have other ends of names.
TEST_F(LoraFiles, OlderSpellings) {
  TensorMap kohya = lora_tensors(layers, names, LoraForm::kohya), older, without;
  for (const auto& [name, t] : kohya) {
    if (name.ends_with(".alpha")) {
      older[name] = t.reshape({1});
      continue;
    }
    const bool down = name.ends_with(".lora_down.weight");
    const std::string layer = name.substr(0, name.rfind(".lora_"));
    older[layer + (down ? ".lora.down.weight" : ".lora.up.weight")] = t.dim() == 2 ? t.unsqueeze(-1).unsqueeze(-1).contiguous() : t;
    // No alpha anywhere: alpha is the rank.
    without[layer + (down ? ".lora_down.weight" : ".lora_up.weight")] = down ? t : t * 1.5;
  }
  EXPECT_LE(error_of(write("older.safetensors", older)), 1e-6);
  EXPECT_LE(error_of(write("without.safetensors", without)), 1e-6);
}

TEST_F(LoraFiles, FoldsAlphaInFloat32AndRoundsOnce) {
  const std::string conv = "unet.conv_in", root = "lora_unet_conv_in";
  const LoraLayer& l = layers.at("conv_in");
  const TensorMap half = lora_tensors(layers, names, LoraForm::peft, at::kBFloat16), kohya = lora_tensors(layers, names, LoraForm::kohya, at::kBFloat16);
  EXPECT_TRUE(half.at(conv + ".lora_B.weight").equal((l.b * 1.5).to(at::kBFloat16)));
  EXPECT_TRUE(half.at(conv + ".lora_A.weight").equal(l.a.to(at::kBFloat16)));
  EXPECT_EQ(kohya.at(root + ".alpha").scalar_type(), at::kFloat);
  EXPECT_EQ(kohya.at(root + ".alpha").item<double>(), 6);
  EXPECT_TRUE(kohya.at(root + ".lora_up.weight").equal(l.b.to(at::kBFloat16)));
  for (const auto& [name, t] : half) EXPECT_FALSE(name.ends_with(".alpha")) << name;
  const Json metadata = Json::parse(lora_adapter_metadata(layers, "unet"));
  EXPECT_EQ(metadata.at("unet.r"), 4);
  EXPECT_EQ(metadata.at("unet.lora_alpha"), 4);
  EXPECT_EQ(metadata.at("unet.target_modules").size(), layers.size());
  EXPECT_FALSE(metadata.contains("unet.rank_pattern"));
  LoraLayers mixed = layers;
  mixed["conv_in"] = {.a = l.a.narrow(0, 0, 2), .b = l.b.narrow(1, 0, 2), .alpha = 3};
  EXPECT_EQ(Json::parse(lora_adapter_metadata(mixed, "unet")).at("unet.alpha_pattern").dump(), R"({"conv_in":2})");
}

TEST_F(LoraFiles, EqualBytesAndMetadata) {
  for (const LoraForm form : kForms) {
    const auto once = [&](const char* name) { return read_text(write(name, lora_tensors(layers, names, form), {{"lora_adapter_metadata", lora_adapter_metadata(layers, "unet")}})); };
    EXPECT_EQ(once("a.safetensors"), once("b.safetensors"));
  }
  EXPECT_EQ(lora_legacy_hash(write("small.safetensors", {{"a", at::zeros({2})}})), "e3b0c442") << "of nothing";
}

TEST_F(LoraFiles, ProblemsAreNamed) {
  const TensorMap good = lora_tensors(layers, names, LoraForm::kohya);
  const auto changed = [&](const char* name, const std::function<void(TensorMap&)>& change) {
    TensorMap tensors = good;
    change(tensors);
    return write(name, tensors);
  };
  EXPECT_THAT(says(changed("te.safetensors", [](TensorMap& t) { t["lora_te1_text_model.alpha"] = at::ones({}), t["lora_unet_conv_in.dora_scale"] = at::ones({1}); })),
              AllOf(HasSubstr("te.safetensors: 2 of "), HasSubstr("belong to no layer of this unet, the first: 'lora_te1_text_model.alpha'"), HasSubstr("layers matched"), HasSubstr("text encoder")));
  EXPECT_THAT(says(changed("half.safetensors", [](TensorMap& t) { t.erase("lora_unet_conv_in.lora_up.weight"); })), HasSubstr("layer 'conv_in' has one half of its adapter only (B, up is missing)"));
  EXPECT_THAT(says(changed("rank.safetensors", [](TensorMap& t) { t["lora_unet_conv_in.lora_up.weight"] = at::ones({32, 3, 1, 1}); })), HasSubstr("not of one rank"));
  EXPECT_THAT(says(changed("twice.safetensors", [](TensorMap& t) { t["unet.conv_in.lora_A.weight"] = at::ones({4, 4, 3, 3}); })), HasSubstr("layer 'conv_in' is there twice"));
  EXPECT_THAT(says(folder / "none.safetensors"), HasSubstr("none.safetensors: no such file or folder"));
  make_directories(folder / "empty");
  EXPECT_THAT(says(folder / "empty"), HasSubstr("no LoRA in it: expected pytorch_lora_weights.safetensors or adapter_model.safetensors, or a run"));
  make_directories(folder / "dora");
  write("dora/adapter_model.safetensors", peft);
  write_json(folder / "dora/adapter_config.json", {{"use_dora", true}});
  EXPECT_THAT(says(folder / "dora"), HasSubstr("use_dora is true: only plain LoRA is read"));
  const LoraLayers other = {{"conv_in", {.a = at::ones({4, 8, 3, 3}), .b = at::ones({32, 4, 1, 1}), .alpha = 4}}};
  EXPECT_THAT(message_of<DataError>([&] { with_lora(unet, other, 1, "x.safetensors"); }), AllOf(HasSubstr("layer 'conv_in' is [32, 4, 3, 3]"), HasSubstr("another network")));
}

}  // namespace
}  // namespace fewstep::models
