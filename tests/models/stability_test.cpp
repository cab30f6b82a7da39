// Stability's single files and model folders: the same bytes there and back, and what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/hash.h"
#include "src/io/checkpoint.h"
#include "src/io/safetensors.h"
#include "src/models/model.h"
#include "src/models/model_folder.h"
#include "src/models/stability_checkpoint.h"
#include "src/models/weight_files.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"
#include "tests/support/scratch.h"
#include "tests/support/small_stability.h"

namespace fewstep::models {
namespace {

namespace fs = std::filesystem;
using support::SmallRelease;
using ::testing::AllOf;
using ::testing::HasSubstr;

const fs::path kVocabulary = FEWSTEP_SOURCE_DIR "/tests/golden/clip_tokenizer";

// --- Round trips

void expect_same_tensors(const fs::path& a, const fs::path& b) {
  const io::Safetensors x(a), y(b);
  EXPECT_EQ(x.names(), y.names()) << b;
  for (const std::string& name : x.names()) {
    ASSERT_EQ(x.info(name).dtype, y.info(name).dtype) << name;
    ASSERT_EQ(x.info(name).shape, y.info(name).shape) << name;
    const Tensor s = x.get(name), t = y.get(name);
    EXPECT_EQ(std::memcmp(s.const_data_ptr(), t.const_data_ptr(), s.nbytes()), 0) << name;
  }
}
void expect_same_folder(const fs::path& a, const fs::path& b) {
  EXPECT_EQ(files_below(a), files_below(b));
  for (const fs::path& file : files_below(a)) {
    if (file.extension() == ".safetensors") expect_same_tensors(a / file, b / file);
    else EXPECT_EQ(read_text(a / file), read_text(b / file)) << file;
  }
}

class RoundTrip : public ::testing::TestWithParam<SmallRelease> {
 protected:
  const testing::ScratchFolder scratch{"stability"};
  const fs::path folder = scratch / "folder";
  void SetUp() override { support::write_small_release(folder, GetParam(), kVocabulary); }
};
INSTANTIATE_TEST_SUITE_P(Releases, RoundTrip, ::testing::Values(SmallRelease::base, SmallRelease::refiner, SmallRelease::version1));

TEST_P(RoundTrip, FolderToFileToFolderIsTheSame) {
  write_single_file(folder, scratch / "one.safetensors");
  write_single_file(folder, scratch / "two.safetensors");
  EXPECT_EQ(read_text(scratch / "one.safetensors"), read_text(scratch / "two.safetensors"));
  unpack_single_file(read_single_file(scratch / "one.safetensors"), scratch / "back");
  expect_same_folder(folder, scratch / "back");
}

// As others publish: no configs in the metadata, and the tensors that come with open_clip and the trainers.
TEST_P(RoundTrip, FileOfOthersToFolderToFileIsTheSame) {
  write_single_file(folder, scratch / "ours.safetensors");
  TensorMap tensors = io::Safetensors(scratch / "ours.safetensors").all();
  const bool base = GetParam() == SmallRelease::base, version1 = GetParam() == SmallRelease::version1;
  if (!version1) tensors[base ? "conditioner.embedders.1.model.logit_scale" : "conditioner.embedders.0.model.logit_scale"] = at::full({}, 4.6052);
  if (base) tensors["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = at::arange(77).unsqueeze(0);
  if (version1) tensors["alphas_cumprod"] = at::rand({1000}), tensors["model_ema.decay"] = at::full({}, 0.9999);
  io::write_safetensors(scratch / "theirs.safetensors", tensors);

  const SingleFile file = read_single_file(scratch / "theirs.safetensors");
  ASSERT_NE(file.release, nullptr);
  EXPECT_EQ(file.release, &stability_releases()[static_cast<size_t>(GetParam())]);
  EXPECT_EQ(file.extra.size(), version1 ? 2u : 1u);
  fs::copy(kVocabulary, scratch / "tokenizer");
  unpack_single_file(file, scratch / "back");
  for (const ModelComponent& c : read_model_folder(folder).components) {
    if (!has_weights(c.folder)) continue;
    const auto want = load_model(c.folder), have = load_model(scratch / ("back/" + c.name));  // strict
    const TensorMap state = io::to_map(have->state());
    for (const auto& [name, t] : io::to_map(want->state())) EXPECT_TRUE(state.at(name).equal(t)) << c.name << " " << name;
  }
  const auto config = [&](const fs::path& where, const char* name) { return read_json(where / name); };
  const fs::path back = scratch / "back";
  EXPECT_EQ(UNet2DConfig::from_json(config(back, "unet/config.json"), "u").to_json(), support::small_unet_config(GetParam()).to_json());
  EXPECT_EQ(AutoencoderKlConfig::from_json(config(back, "vae/config.json"), "v").to_json(), support::small_vae_config(GetParam()).to_json());
  EXPECT_EQ(config(back, "model_index.json").at("_class_name"), config(folder, "model_index.json").at("_class_name"));
  EXPECT_EQ(config(back, "scheduler/scheduler_config.json"), config(folder, "scheduler/scheduler_config.json"));
  if (!version1) {
    EXPECT_EQ(config(back, "tokenizer_2/tokenizer_config.json").at("pad_token"), "!");
    EXPECT_EQ(read_text(back / "tokenizer_2/vocab.json"), read_text(kVocabulary / "vocab.json"));
  }
  write_single_file(back, scratch / "again.safetensors");
  expect_same_tensors(scratch / "theirs.safetensors", scratch / "again.safetensors");
}

TEST_P(RoundTrip, HalfPrecisionKeepsEverythingElse) {
  write_single_file(folder, scratch / "half.safetensors", {.dtype = at::kHalf});
  const SingleFile file = read_single_file(scratch / "half.safetensors");
  const TensorMap want = io::Safetensors(find_weights(folder / "unet", {})).all();
  const SingleFile::Network* unet = file.find("unet");
  ASSERT_NE(unet, nullptr);
  for (const auto& [name, t] : want) EXPECT_TRUE(unet->tensors.at(name).equal(t.to(at::kHalf))) << name;
}

class BaseFile : public ::testing::Test {
 protected:
  const testing::ScratchFolder scratch{"stability"};
  const fs::path folder = scratch / "folder", path = scratch / "file.safetensors";
  TensorMap tensors;
  std::map<std::string, std::string> metadata;
  void SetUp() override {
    support::write_small_release(folder, SmallRelease::base, kVocabulary);
    write_single_file(folder, path);
    const io::Safetensors file(path);
    tensors = file.all(), metadata = file.metadata();
  }
  std::string problem(const TensorMap& t, const std::map<std::string, std::string>& m = {}) const {
    io::write_safetensors(scratch / "changed.safetensors", t, m);
    return message_of<DataError>([&] { read_single_file(scratch / "changed.safetensors"); });
  }
};

TEST_F(BaseFile, NamesItsModel) {
  EXPECT_EQ(metadata.at("modelspec.sai_model_spec"), "1.0.0");
  EXPECT_EQ(metadata.at("modelspec.architecture"), "stable-diffusion-xl-v1-base");
  EXPECT_EQ(metadata.at("modelspec.resolution"), "1024x1024");
  EXPECT_EQ(metadata.at("modelspec.prediction_type"), "epsilon");
  // Of the bytes behind the header: computed here from the file itself.
  const std::string bytes = read_text(path);
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof header);
  EXPECT_EQ(metadata.at("modelspec.hash_sha256"), "0x" + sha256_hex(std::string_view(bytes).substr(8 + header)));
}

TEST_F(BaseFile, MissingTensorsAreNamedAndCounted) {
  TensorMap cut = tensors;
  for (int64_t i = 0; i < 2; ++i) std::erase_if(cut, [&](const auto& t) { return t.first.starts_with(fmt::format("model.diffusion_model.middle_block.1.transformer_blocks.{}.attn2.", i)); });
  EXPECT_THAT(problem(cut, metadata), AllOf(HasSubstr("unet: tensors are missing, 10 of "), HasSubstr("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"),
                                            HasSubstr("and 2 more")));
  cut = tensors;
  cut.erase("conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_bias");
  EXPECT_THAT(problem(cut), AllOf(HasSubstr("text_encoder_2: tensors are missing, 3 of "), HasSubstr("layers.1.self_attn.k_proj.bias")));
}

TEST_F(BaseFile, ConfigsThatDisagreeWithTheTensorsAreRefused) {
  auto changed = metadata;
  Json config = Json::parse(changed.at("fewstep.file.unet/config.json"));
  config["cross_attention_dim"] = 1024;
  changed["fewstep.file.unet/config.json"] = config.dump();
  EXPECT_THAT(problem(tensors, changed), AllOf(HasSubstr("unet: config and tensors disagree"), HasSubstr("attn2.to_k.weight is 64x2048, config.json makes it 64x1024")));
  TensorMap marked = tensors;
  marked["v_pred"] = at::empty({0});
  EXPECT_THAT(problem(marked, metadata), AllOf(HasSubstr("marked v_pred"), HasSubstr("prediction_type epsilon")));
  for (const char* bad : {"fewstep.file.../../evil.json", "fewstep.file./etc/x.json", "fewstep.file.unet/x.sh", "fewstep.file.unet/.hidden.json"}) {
    changed = metadata;
    changed[bad] = "x";
    EXPECT_THAT(problem(tensors, changed), HasSubstr("does not name a file of a model folder")) << bad;
  }
}

TEST_F(BaseFile, OtherCheckpointsAreRefusedByName) {
  const auto with = [&](const char* name, const Tensor& t) {
    TensorMap out = tensors;
    out[name] = t;
    return out;
  };
  EXPECT_THAT(problem(with("edm_mean", at::zeros({4}))), HasSubstr("Playground 2.5"));
  EXPECT_THAT(problem(with("cond_stage_model.model.transformer.resblocks.0.ln_1.weight", at::zeros({4}))), HasSubstr("Stable Diffusion 2"));
  EXPECT_THAT(problem(with("model.diffusion_model.input_blocks.0.0.weight", at::zeros({64, 9, 3, 3}))), HasSubstr("inpainting network (9 input channels)"));
  EXPECT_THAT(problem(with("model.diffusion_model.input_blocks.0.0.weight", at::zeros({64, 8, 3, 3}))), HasSubstr("8 input channels"));
  EXPECT_THAT(problem(with("model.diffusion_model.input_blocks.1.7.weight", at::zeros({1}))), HasSubstr("belong to no block of the network, 1 of "));
  EXPECT_THAT(problem(with("vae.encoder.conv_in.weight", at::zeros({1}))), HasSubstr("vae is there twice"));
  EXPECT_THAT(problem({{"down_blocks.0.resnets.0.conv1.weight", at::zeros({1})}}), HasSubstr("one component of a diffusers folder"));
  EXPECT_THAT(problem({{"blocks.0.weight", at::zeros({1})}}), HasSubstr("1 tensors of no known layout (they begin blocks.0.weight)"));
  // Depths that differ between the two transformers of a level: a distilled, pruned network.
  TensorMap pruned = tensors;
  std::erase_if(pruned, [](const auto& t) { return t.first.starts_with("model.diffusion_model.output_blocks.0.1.transformer_blocks.1."); });
  EXPECT_THAT(problem(pruned), HasSubstr("pruned network"));
}

TEST_F(BaseFile, TruncatedFilesAreRefused) {
  const std::string bytes = read_text(path);
  for (const size_t size : {size_t{5}, size_t{1000}, bytes.size() - 1}) {
    std::ofstream(scratch / "cut.safetensors", std::ios::binary) << bytes.substr(0, size);
    EXPECT_THAT(message_of<DataError>([&] { read_single_file(scratch / "cut.safetensors"); }), HasSubstr("cut.safetensors")) << size;
  }
}

TEST_F(BaseFile, MarksOfPredictionAreReadAndWritten) {
  TensorMap marked = tensors;
  marked["v_pred"] = at::empty({0}), marked["ztsnr"] = at::empty({0});
  io::write_safetensors(scratch / "v.safetensors", marked);
  const SingleFile file = read_single_file(scratch / "v.safetensors");
  EXPECT_TRUE(file.v_prediction && file.zero_terminal_snr);
  unpack_single_file(file, scratch / "v");
  const Json scheduler = read_json(scratch / "v/scheduler/scheduler_config.json");
  EXPECT_EQ(scheduler.at("prediction_type"), "v_prediction");
  EXPECT_EQ(scheduler.at("rescale_betas_zero_snr"), true);
  EXPECT_EQ(scheduler.at("timestep_spacing"), "trailing");
  fs::remove(scratch / "v" / kExtraFile);  // as of a model trained here: the scheduler alone says it
  write_single_file(scratch / "v", scratch / "again.safetensors");
  const io::Safetensors again(scratch / "again.safetensors");
  EXPECT_TRUE(again.contains("v_pred") && again.contains("ztsnr"));
  EXPECT_EQ(again.metadata().at("modelspec.prediction_type"), "v");
}

TEST_F(BaseFile, FilesWithOneNetworkAndOtherPrefixes) {
  TensorMap unet, vae, renamed;
  for (const auto& [name, t] : tensors) {
    if (name.starts_with("model.diffusion_model.")) unet[name.substr(22)] = t;
    if (name.starts_with("first_stage_model.")) vae[name.substr(18)] = t, renamed["vae." + name.substr(18)] = t;
  }
  io::write_safetensors(scratch / "unet.safetensors", unet);
  const SingleFile bare = read_single_file(scratch / "unet.safetensors");
  ASSERT_EQ(bare.networks.size(), 1u);
  EXPECT_EQ(bare.networks[0].component, "unet");
  EXPECT_EQ(bare.release->name, "sdxl-base");
  for (const TensorMap& part : {vae, renamed}) {
    io::write_safetensors(scratch / "vae.safetensors", part);
    const SingleFile file = read_single_file(scratch / "vae.safetensors");
    ASSERT_NE(file.find("vae"), nullptr);
    EXPECT_EQ(file.find("vae")->tensors.size(), io::Safetensors(find_weights(folder / "vae", {})).names().size());
    EXPECT_EQ(file.find("vae")->tensors.at("encoder.mid_block.attentions.0.to_q.weight").dim(), 2);
  }
}

TEST_F(BaseFile, MovingAveragesByTheirFlatNames) {
  TensorMap with = tensors;
  for (const auto& [name, t] : tensors) {
    if (!name.starts_with("model.diffusion_model.")) continue;
    std::string flat = name.substr(6);
    std::erase(flat, '.');
    with["model_ema." + flat] = t + 1;
  }
  with["model_ema.decay"] = at::full({}, 0.9999);
  io::write_safetensors(scratch / "ema.safetensors", with, metadata);
  const SingleFile plain = read_single_file(scratch / "ema.safetensors"), ema = read_single_file(scratch / "ema.safetensors", {.ema = true});
  const Tensor& before = plain.find("unet")->tensors.at("mid_block.resnets.0.conv1.weight");
  EXPECT_TRUE(ema.find("unet")->tensors.at("mid_block.resnets.0.conv1.weight").equal(before + 1));
  EXPECT_TRUE(ema.extra.empty());
  with.erase("model_ema.diffusion_modelout2bias");
  io::write_safetensors(scratch / "ema.safetensors", with);
  EXPECT_THAT(message_of<DataError>([&] { read_single_file(scratch / "ema.safetensors", {.ema = true}); }), AllOf(HasSubstr("1 of "), HasSubstr("out.2.bias")));
}

// Text encoders as transformers 5 saves them, and networks and settings that only we know.
TEST_F(BaseFile, UnusualFoldersComeBackToo) {
  TensorMap bare;
  for (const auto& [name, t] : io::Safetensors(find_weights(folder / "text_encoder", {})).all()) bare[name.substr(11)] = t;
  bare["embeddings.position_ids"] = at::arange(77).unsqueeze(0);
  fs::remove(folder / "text_encoder/model.safetensors");
  io::write_safetensors(folder / "text_encoder/model.safetensors", bare);
  TensorMap second = io::Safetensors(find_weights(folder / "text_encoder_2", {})).all();
  second["text_model.embeddings.position_ids"] = at::arange(77).unsqueeze(0);
  io::write_safetensors(folder / "text_encoder_2/model.safetensors", second);
  save_model(folder / "class_embedding", {{"embedding.weight", at::rand({10, 8})}}, {{"_class_name", "LabelEmbedding"}, {"num_classes", 10}, {"dim", 8}});
  make_directories(folder / "conditioner");
  write_json(folder / "conditioner/conditioner_config.json", {{"kind", "class"}});
  Json index = read_json(folder / "model_index.json");
  index["conditioner"] = {"fewstep", "ClassConditioner"}, index["class_embedding"] = {"fewstep", "LabelEmbedding"};
  write_json(folder / "model_index.json", index);
  write_single_file(folder, scratch / "unusual.safetensors");
  unpack_single_file(read_single_file(scratch / "unusual.safetensors"), scratch / "back");
  expect_same_folder(folder, scratch / "back");
}

// --- Weight files

TEST(WeightFiles, ShardsAndVariantsInEverySpelling) {
  const testing::ScratchFolder scratch("weights");
  TensorMap tensors;
  for (int64_t i = 0; i < 5; ++i) tensors[fmt::format("t{}", i)] = at::rand({10, 10});
  tensors["ids"] = at::arange(3);
  write_weights(scratch.path(), "diffusion_pytorch_model", tensors, {.max_shard_bytes = 900});
  write_weights(scratch.path(), "diffusion_pytorch_model", tensors, {.dtype = at::kHalf, .max_shard_bytes = 450, .variant = "fp16"});
  EXPECT_EQ(find_weights(scratch.path(), {}).filename(), "diffusion_pytorch_model.safetensors.index.json");
  const fs::path half = find_weights(scratch.path(), "fp16");
  EXPECT_EQ(half.filename(), "diffusion_pytorch_model.safetensors.index.fp16.json");
  EXPECT_TRUE(fs::exists(scratch / "diffusion_pytorch_model.fp16-00001-of-00003.safetensors"));
  EXPECT_EQ(weight_files(scratch.path(), "fp16").size(), 4u);
  for (const auto& [name, t] : tensors) {
    EXPECT_TRUE(io::Safetensors(find_weights(scratch.path(), {})).get(name).equal(t));
    const Tensor h = io::Safetensors(half).get(name);
    EXPECT_TRUE(h.equal(name == "ids" ? t : t.to(at::kHalf))) << name;
  }
  fs::rename(half, scratch / "diffusion_pytorch_model.fp16.safetensors.index.json");
  EXPECT_EQ(find_weights(scratch.path(), "fp16").filename(), "diffusion_pytorch_model.fp16.safetensors.index.json");
  EXPECT_THAT(message_of<DataError>([&] { find_weights(scratch.path(), "bf16"); }), HasSubstr("no weights of variant 'bf16' (there are: fp16)"));
}

TEST(WeightFiles, TheOnlyVariantIsTakenAndPicklesAreExplained) {
  const testing::ScratchFolder scratch("weights");
  EXPECT_FALSE(has_weights(scratch.path()));
  std::ofstream(scratch / "pytorch_model.bin") << "x";
  EXPECT_THAT(message_of<DataError>([&] { find_weights(scratch.path()); }), AllOf(HasSubstr("pytorch_model.bin"), HasSubstr("convert_weights.py")));
  write_weights(scratch.path(), "model", {{"a", at::rand({2})}}, {.variant = "fp16"});
  EXPECT_EQ(find_weights(scratch.path()).filename(), "model.fp16.safetensors");
  write_weights(scratch.path(), "model", {{"a", at::rand({2})}}, {.variant = "bf16"});
  EXPECT_THAT(message_of<DataError>([&] { find_weights(scratch.path()); }), HasSubstr("several variants (bf16, fp16)"));
  EXPECT_THAT(message_of<DataError>([&] { write_weights(scratch.path(), "model", {{"big", at::full({2}, 1e6)}}, {.dtype = at::kHalf}); }),
              AllOf(HasSubstr("'big' holds 1000000"), HasSubstr("65504")));
}

// --- Whatever a user names

TEST_F(BaseFile, ModelFoldersAreFound) {
  setenv("FEWSTEP_CACHE", (scratch / "cache").c_str(), 1);
  EXPECT_EQ(as_model_folder(folder), folder);
  const fs::path unpacked = as_model_folder(path);
  EXPECT_TRUE(fs::exists(unpacked / "unet/diffusion_pytorch_model.safetensors"));
  const auto time = fs::last_write_time(unpacked / "model_index.json");
  fs::copy(path, scratch / "renamed.safetensors");
  EXPECT_EQ(as_model_folder(scratch / "renamed.safetensors"), unpacked) << "the contents name the folder";
  EXPECT_EQ(fs::last_write_time(unpacked / "model_index.json"), time);
  for (const int64_t step : {1, 2}) {
    io::CheckpointWriter checkpoint(io::checkpoint_path(scratch / "run", step));
    fs::copy(folder, checkpoint.folder() / "model", fs::copy_options::recursive);
    checkpoint.commit();
    io::publish_checkpoint(scratch / "run", step, 0);
  }
  EXPECT_EQ(as_model_folder(scratch / "run"), io::checkpoint_path(scratch / "run", 2) / "model");
  EXPECT_EQ(as_model_folder(io::checkpoint_path(scratch / "run", 1)), io::checkpoint_path(scratch / "run", 1) / "model");
  EXPECT_THAT(message_of<DataError>([&] { as_model_folder(scratch / "nowhere"); }), HasSubstr("no such file or folder"));
  std::ofstream(scratch / "x.ckpt") << "x";
  EXPECT_THAT(message_of<DataError>([&] { as_model_folder(scratch / "x.ckpt"); }), HasSubstr("convert_weights.py"));
  unsetenv("FEWSTEP_CACHE");
}

TEST_F(BaseFile, ComponentsAreFoundInWhateverHoldsThem) {
  const auto vae = [](const fs::path& named) { return component_folder(named, {"vae"}); };
  EXPECT_EQ(vae(folder), folder / "vae");
  EXPECT_EQ(vae(folder / "vae"), folder / "vae");
  EXPECT_EQ(vae(folder / "vae/"), folder / "vae");  // as a shell completes it
  fs::create_directories(scratch / "plain");         // without model_index.json
  fs::copy(folder / "vae", scratch / "plain/vae");
  EXPECT_EQ(vae(scratch / "plain"), scratch / "plain/vae");
  io::CheckpointWriter checkpoint(io::checkpoint_path(scratch / "run", 3));
  fs::copy(folder, checkpoint.folder() / "model", fs::copy_options::recursive);
  checkpoint.commit();
  io::publish_checkpoint(scratch / "run", 3, 0);
  EXPECT_EQ(vae(scratch / "run"), io::checkpoint_path(scratch / "run", 3) / "model/vae");
  EXPECT_EQ(component_folder(folder, {"text_encoder", "text_encoder_2"}), folder / "text_encoder");
  EXPECT_THAT(message_of<DataError>([&] { component_folder(folder, {"vq", "encoder"}); }),
              HasSubstr("there is no vq/config.json and no encoder/config.json in it"));
  EXPECT_THAT(message_of<DataError>([&] { vae(scratch / "nowhere"); }), HasSubstr("no such file or folder"));
}

TEST_F(BaseFile, BrokenFilesLeaveNothingInTheCache) {
  setenv("FEWSTEP_CACHE", (scratch / "cache").c_str(), 1);
  TensorMap cut = tensors;
  cut.erase("model.diffusion_model.out.2.bias");
  io::write_safetensors(scratch / "cut.safetensors", cut, metadata);
  EXPECT_THAT(message_of<DataError>([&] { as_model_folder(scratch / "cut.safetensors"); }), HasSubstr("1 of "));
  EXPECT_TRUE(!fs::exists(scratch / "cache/models") || fs::is_empty(scratch / "cache/models"));
  unsetenv("FEWSTEP_CACHE");
}

}  // namespace
}  // namespace fewstep::models
