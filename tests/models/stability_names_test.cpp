// Names and layouts of Stability's single files: complete and one to one on the full-size networks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/io/safetensors.h"
#include "src/models/model.h"
#include "src/models/stability_configs.h"
#include "src/models/stability_layout.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"
#include "tests/support/scratch.h"
#include "tests/support/small_stability.h"

namespace fewstep::models {
namespace {

using support::SmallRelease;
using ::testing::AllOf;
using ::testing::HasSubstr;

TensorMap meta_state(const char* class_name, Json config) {
  const nn::BuildScope meta(at::kMeta);
  (class_name[0] == 'C' ? config["architectures"] = {class_name} : config["_class_name"] = class_name);
  return io::to_map(find_model_kind(config, "test").build(config)->state());
}

// There and back on shapes alone; returns what stands in the file.
TensorMap expect_one_to_one(StabilityPart part, const TensorMap& ours) {
  TensorMap rest;
  const TensorMap theirs = to_stability(part, ours, rest, "test");
  EXPECT_TRUE(rest.empty());
  const TensorMap back = to_diffusers(part, theirs, rest, "test");
  EXPECT_TRUE(rest.empty());
  EXPECT_EQ(back.size(), ours.size());
  for (const auto& [name, t] : ours) {
    const auto it = back.find(name);
    if (it == back.end()) ADD_FAILURE() << name << " does not come back";
    else EXPECT_EQ(it->second.sizes(), t.sizes()) << name;
  }
  return theirs;
}

struct Spelling {
  const char* name;
  std::vector<int64_t> shape;
};
void expect_there(const TensorMap& tensors, const std::vector<Spelling>& spellings) {
  for (const Spelling& s : spellings) {
    const auto it = tensors.find(s.name);
    if (it == tensors.end()) ADD_FAILURE() << s.name << " is missing";
    else EXPECT_EQ(it->second.sizes().vec(), s.shape) << s.name;
  }
}

// The names are those that sgm's UNetModel gives with its published configs (sd_xl_base.yaml, sd_xl_refiner.yaml), written down
// by hand.
TEST(FullSize, SdxlBaseUnet) {
  const TensorMap ours = meta_state("UNet2DConditionModel", sdxl_base_config().to_json());
  ASSERT_EQ(ours.size(), 1680u);
  const TensorMap theirs = expect_one_to_one(StabilityPart::unet, ours);
  ASSERT_EQ(theirs.size(), 1680u);
  expect_there(theirs, {{"time_embed.0.weight", {1280, 320}}, {"label_emb.0.0.weight", {1280, 2816}}, {"label_emb.0.2.bias", {1280}},
                        {"input_blocks.0.0.weight", {320, 4, 3, 3}}, {"input_blocks.2.0.emb_layers.1.weight", {320, 1280}},
                        {"input_blocks.3.0.op.weight", {320, 320, 3, 3}}, {"input_blocks.4.0.skip_connection.weight", {640, 320, 1, 1}},
                        {"input_blocks.4.1.proj_in.weight", {640, 640}}, {"input_blocks.8.1.transformer_blocks.9.ff.net.0.proj.weight", {10240, 1280}},
                        {"middle_block.1.transformer_blocks.9.attn2.to_k.weight", {1280, 2048}}, {"middle_block.2.out_layers.3.weight", {1280, 1280, 3, 3}},
                        {"output_blocks.0.0.in_layers.2.weight", {1280, 2560, 3, 3}}, {"output_blocks.2.2.conv.weight", {1280, 1280, 3, 3}},
                        {"output_blocks.5.2.conv.bias", {640}}, {"output_blocks.5.1.transformer_blocks.1.attn1.to_out.0.bias", {640}},
                        {"output_blocks.8.0.in_layers.0.weight", {640}}, {"out.0.weight", {320}}, {"out.2.weight", {4, 320, 3, 3}}});
  EXPECT_FALSE(theirs.contains("output_blocks.6.1.norm.weight")) << "the finest level has no attention";
  const StabilityRelease& release = release_of_unet(ours, "test");
  EXPECT_EQ(release.name, "sdxl-base");
  EXPECT_EQ(UNet2DConfig::from_json(unet_config_of(ours, release, "test"), "test").to_json(), sdxl_base_config().to_json());
}

TEST(FullSize, RefinerUnet) {
  const TensorMap ours = meta_state("UNet2DConditionModel", sdxl_refiner_config().to_json());
  ASSERT_EQ(ours.size(), 1220u);
  const TensorMap theirs = expect_one_to_one(StabilityPart::unet, ours);
  ASSERT_EQ(theirs.size(), 1220u);
  expect_there(theirs, {{"label_emb.0.0.weight", {1536, 2560}}, {"input_blocks.9.0.op.weight", {1536, 1536, 3, 3}},
                        {"input_blocks.11.0.out_layers.3.weight", {1536, 1536, 3, 3}}, {"middle_block.1.transformer_blocks.3.norm3.weight", {1536}},
                        {"output_blocks.2.1.conv.weight", {1536, 1536, 3, 3}},  // no attention on the coarsest level
                        {"output_blocks.5.2.conv.weight", {1536, 1536, 3, 3}}, {"output_blocks.8.2.conv.weight", {768, 768, 3, 3}},
                        {"output_blocks.3.1.transformer_blocks.3.attn2.to_v.weight", {1536, 1280}}});
  const StabilityRelease& release = release_of_unet(ours, "test");
  EXPECT_EQ(release.name, "sdxl-refiner");
  const UNet2DConfig told = UNet2DConfig::from_json(unet_config_of(ours, release, "test"), "test");
  EXPECT_EQ(told.to_json(), sdxl_refiner_config().to_json());
}

TEST(FullSize, Version1Unet) {
  UNet2DConfig c;  // the defaults are Stable Diffusion 1's but for the context
  c.cross_attention_dim = 768, c.sample_size = 64;
  const TensorMap ours = meta_state("UNet2DConditionModel", c.to_json());
  ASSERT_EQ(ours.size(), 686u);
  const TensorMap theirs = expect_one_to_one(StabilityPart::unet, ours);
  ASSERT_EQ(theirs.size(), 686u);
  expect_there(theirs, {{"input_blocks.1.1.proj_in.weight", {320, 320, 1, 1}}, {"output_blocks.2.1.conv.weight", {1280, 1280, 3, 3}},
                        {"output_blocks.8.2.conv.weight", {640, 640, 3, 3}}, {"output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight", {320, 768}}});
  const StabilityRelease& release = release_of_unet(ours, "test");
  EXPECT_EQ(release.name, "sd-1");
  EXPECT_EQ(UNet2DConfig::from_json(unet_config_of(ours, release, "test"), "test").to_json(), c.to_json());
}

AutoencoderKlConfig full_vae() {
  AutoencoderKlConfig c;
  c.block_out_channels = {128, 256, 512, 512}, c.layers_per_block = 2, c.sample_size = 1024, c.scaling_factor = 0.13025;
  return c;
}

TEST(FullSize, Vae) {
  const TensorMap ours = meta_state("AutoencoderKL", full_vae().to_json());
  ASSERT_EQ(ours.size(), 248u);
  const TensorMap theirs = expect_one_to_one(StabilityPart::vae, ours);
  ASSERT_EQ(theirs.size(), 248u);
  expect_there(theirs, {{"encoder.down.1.block.0.nin_shortcut.weight", {256, 128, 1, 1}}, {"encoder.down.2.downsample.conv.weight", {512, 512, 3, 3}},
                        {"encoder.mid.attn_1.q.weight", {512, 512, 1, 1}}, {"decoder.mid.attn_1.proj_out.weight", {512, 512, 1, 1}},
                        {"decoder.mid.attn_1.norm.weight", {512}}, {"decoder.up.0.block.0.nin_shortcut.weight", {128, 256, 1, 1}},
                        {"decoder.up.3.upsample.conv.weight", {512, 512, 3, 3}}, {"decoder.up.1.upsample.conv.weight", {256, 256, 3, 3}},
                        {"encoder.norm_out.weight", {512}}, {"quant_conv.weight", {8, 8, 1, 1}}});
  EXPECT_FALSE(theirs.contains("decoder.up.0.upsample.conv.weight"));
  EXPECT_EQ(AutoencoderKlConfig::from_json(vae_config_of(ours, stability_release("sdxl-base"), "test"), "test").to_json(), full_vae().to_json());
}

TEST(FullSize, TextEncoders) {
  ClipTextConfig l, g;
  l.hidden_size = 768, l.intermediate_size = 3072, l.num_attention_heads = 12, l.projection_dim = 768;
  g.hidden_size = 1280, g.intermediate_size = 5120, g.num_hidden_layers = 32, g.num_attention_heads = 20, g.projection_dim = 1280;
  g.activation = ClipActivation::gelu, g.projection = true;
  const TensorMap ours_l = meta_state("CLIPTextModel", l.to_json()), ours_g = meta_state("CLIPTextModelWithProjection", g.to_json());
  ASSERT_EQ(ours_l.size(), 196u);
  ASSERT_EQ(ours_g.size(), 517u);
  EXPECT_EQ(expect_one_to_one(StabilityPart::clip_text, ours_l).size(), 196u);
  const TensorMap theirs = expect_one_to_one(StabilityPart::open_clip_text, ours_g);
  EXPECT_EQ(theirs.size(), 517u - 32 * 4);  // q, k, v of weight and bias are one
  expect_there(theirs, {{"transformer.resblocks.9.mlp.c_proj.bias", {1280}}, {"transformer.resblocks.31.attn.in_proj_weight", {3840, 1280}},
                        {"transformer.resblocks.0.attn.in_proj_bias", {3840}}, {"positional_embedding", {77, 1280}},
                        {"token_embedding.weight", {49408, 1280}}, {"ln_final.bias", {1280}}, {"text_projection", {1280, 1280}}});
  EXPECT_EQ(ClipTextConfig::from_json(text_config_of(ours_l, false, "t"), "t").to_json(), l.to_json());
  EXPECT_EQ(ClipTextConfig::from_json(text_config_of(ours_g, true, "t"), "t").to_json(), g.to_json());
}

// --- Values

Tensor counted(at::IntArrayRef shape, double start = 0) {
  int64_t n = 1;
  for (const int64_t s : shape) n *= s;
  return at::arange(n, at::kFloat).add(start).view(shape);
}

TEST(Layout, PackedProjectionsAreRowsOfQueryKeyValue) {
  TensorMap ours, rest;
  for (const auto& [p, start] : {std::pair{"q", 0.0}, {"k", 100.0}, {"v", 200.0}}) {
    ours[fmt::format("text_model.encoder.layers.0.self_attn.{}_proj.weight", p)] = counted({2, 2}, start);
    ours[fmt::format("text_model.encoder.layers.0.self_attn.{}_proj.bias", p)] = counted({2}, start);
  }
  ours["text_projection.weight"] = counted({3, 2});  // [out, in] here, [in, out] there
  const TensorMap theirs = to_stability(StabilityPart::open_clip_text, ours, rest, "test");
  const Tensor packed = theirs.at("transformer.resblocks.0.attn.in_proj_weight");
  EXPECT_EQ(packed.sizes().vec(), (std::vector<int64_t>{6, 2}));
  EXPECT_EQ(packed[0][1].item<float>(), 1);
  EXPECT_EQ(packed[2][0].item<float>(), 100);
  EXPECT_EQ(packed[5][1].item<float>(), 203);
  EXPECT_EQ(theirs.at("text_projection")[1][0].item<float>(), 1);  // of [0][1]
  EXPECT_EQ(theirs.at("text_projection")[0][2].item<float>(), 4);
  ours["text_model.encoder.layers.0.self_attn.k_proj.bias"] = counted({2}).to(at::kHalf);
  EXPECT_THAT(message_of<DataError>([&] { to_stability(StabilityPart::open_clip_text, ours, rest, "here"); }),
              AllOf(HasSubstr("here"), HasSubstr("k_proj.bias"), HasSubstr("another dtype")));
}

TEST(Layout, OldNamesOfTheAutoencoderAreRead) {
  EXPECT_EQ(modern_name(StabilityPart::vae, "encoder.mid_block.attentions.0.query.weight"), "encoder.mid_block.attentions.0.to_q.weight");
  EXPECT_EQ(modern_name(StabilityPart::vae, "decoder.mid_block.attentions.0.proj_attn.bias"), "decoder.mid_block.attentions.0.to_out.0.bias");
  EXPECT_EQ(modern_name(StabilityPart::vae, "decoder.mid_block.attentions.0.group_norm.bias"), "decoder.mid_block.attentions.0.group_norm.bias");
  const testing::ScratchFolder scratch("old-vae");
  AutoencoderKL vae(support::small_vae_config(SmallRelease::base));
  vae.initialise(1);
  TensorMap old;
  const std::pair<const char*, const char*> kOld[] = {{".to_q.", ".query."}, {".to_k.", ".key."}, {".to_v.", ".value."}, {".to_out.0.", ".proj_attn."}};
  int64_t renamed = 0;
  for (const auto& [today_name, tensor] : io::to_map(vae.state())) {
    std::string name = today_name;
    Tensor t = tensor;
    for (const auto& [today, before] : kOld)
      if (const size_t at = name.find(today); at != name.npos) name.replace(at, std::string(today).size(), before), ++renamed;
    if (name.ends_with(".query.weight")) t = t.unsqueeze(-1).unsqueeze(-1);  // the oldest files: still convolutions
    old[name] = t;
  }
  EXPECT_EQ(renamed, 16);
  save_model(scratch / "vae", old, vae.config().to_json());
  const TensorMap loaded = io::to_map(load_model(scratch / "vae")->state());
  for (const auto& [name, t] : io::to_map(vae.state())) EXPECT_TRUE(loaded.at(name).equal(t)) << name;
}

}  // namespace
}  // namespace fewstep::models
