// Files of teacher images: written in parts, drawn by a model, picked for the samples of a batch.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/pipelines/diffusion_model.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"
#include "tests/trainers/feature_gan_bench.h"

namespace fewstep {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

int64_t level_of(const Tensor& image) { return std::llround((image.mean().item<double>() + 1) * 127.5); }

TEST(TeacherImages, EachComesWithItsOwnCaption) {
  const testing::ScratchFolder folder("teacher");
  testing::write_teacher_file(folder.path() / "t.h5", {0, 3, 4, 7, 9, 12});  // two parts
  EXPECT_FALSE(fs::exists(folder.path() / "t.h5.parts"));
  const TeacherImages images(folder.path() / "t.h5");
  EXPECT_EQ(images.size(), 6);
  // 4 and 9 have their own, in rows 2 and 4; 20 takes row 20 mod 6 = 2, 1 takes row 1.
  const auto own = images.pick(at::tensor({4, 9, 20, 1}, at::kLong), {1, 16, 16}, true);
  EXPECT_EQ(own.same_sample, 2);
  EXPECT_THAT(own.captions, ElementsAre("a blue thing", "a red thing", "a blue thing", "a red thing"));
  EXPECT_EQ(own.images.sizes(), at::IntArrayRef({4, 1, 16, 16}));
  for (int64_t i = 0; i < 4; ++i) EXPECT_EQ(level_of(own.images[i]), std::vector<int64_t>({16, 32, 16, 8})[static_cast<size_t>(i)]);
  EXPECT_TRUE(own.labels.equal(at::tensor({1, 0, 1, 0}, at::kLong)));
  // Of other data ids mean nothing: image (id mod 6).
  const auto others = images.pick(at::tensor({4, 9}, at::kLong), {1, 16, 16}, false);
  EXPECT_EQ(others.same_sample, 0);
  EXPECT_EQ(level_of(others.images[0]), 8 * 4);
  EXPECT_EQ(level_of(others.images[1]), 8 * 3);
  EXPECT_THAT(others.captions, ElementsAre("a red thing", "a red thing"));  // of samples 9 and 7
  const TeacherImages on_disk(folder.path() / "t.h5", 0);
  EXPECT_TRUE(on_disk.pick(at::tensor({4, 9, 20, 1}, at::kLong), {1, 16, 16}, true).images.equal(own.images));
  const testing::ScoredPictures data;
  EXPECT_TRUE(images.same_samples(data));
  testing::write_teacher_file(folder.path() / "o.h5", {1}, 16, "something else");
  EXPECT_FALSE(TeacherImages(folder.path() / "o.h5").same_samples(data));
}

TeacherRow row_of(int64_t id, int64_t side = 4) {
  return {.image = at::full({1, side, side}, id, at::kByte), .id = id, .label = -1, .caption = fmt::format("number {}", id)};
}

TEST(TeacherImages, AnInterruptedWriterGoesOnBehindItsLastPart) {
  const testing::ScratchFolder folder("teacher");
  const fs::path out = folder.path() / "t.h5";
  TeacherFacts facts;
  facts.model = "m", facts.model_name = "runs/t", facts.count = 7, facts.options = "sampling_steps=4";
  {
    TeacherImageWriter writer(out, facts, 3);
    for (int64_t id = 0; id < 5; ++id) writer.add({row_of(id)});
  }
  EXPECT_FALSE(fs::exists(out));
  TeacherFacts other = facts;
  other.seed = 4, other.options = "sampling_steps=8";
  EXPECT_THAT(message_of<ConfigError>([&] { TeacherImageWriter(out, other, 3); }),
              HasSubstr("holds teacher images of other settings (options \"sampling_steps=4\" instead of \"sampling_steps=8\", seed 0 instead of 4)"));
  TeacherImageWriter writer(out, facts, 3);
  EXPECT_EQ(writer.done(), 3);
  writer.add({row_of(3), row_of(4), row_of(5, 6), row_of(6)});  // one of another size
  writer.finish();
  const TeacherImages images(out);
  EXPECT_EQ(images.size(), 7);
  for (const int64_t id : {0, 3, 4, 6}) {
    const auto picked = images.pick(at::tensor({id}, at::kLong), {1, 4, 4}, true);
    EXPECT_EQ(picked.same_sample, 1);
    EXPECT_EQ(level_of(picked.images[0]), id);
    EXPECT_THAT(picked.captions, ElementsAre(fmt::format("number {}", id)));
  }
  EXPECT_EQ(images.pick(at::tensor({5}, at::kLong), {1, 6, 6}, true).same_sample, 1);
  EXPECT_THAT(message_of<ConfigError>([&] { images.check_size(3, 4, 4); }), HasSubstr("1x4x4, 1x6x6"));
  EXPECT_TRUE(TeacherImageWriter(out, facts, 3).complete());
  EXPECT_THAT(message_of<ConfigError>([&] { TeacherImageWriter(out, other, 3); }), HasSubstr("seed 0 instead of 4"));
}

TEST(TeacherImages, OtherFilesAreRefused) {
  const testing::ScratchFolder folder("teacher");
  EXPECT_THAT(message_of<DataError>([&] { TeacherImages(folder.path() / "none.h5"); }), HasSubstr("no such file; make it with `fewstep data teacher"));
  {
    io::H5File file = io::H5File::create(folder.path() / "x.h5");
    file.write("images", at::zeros({2, 3}, at::kByte));
    file.commit();
  }
  EXPECT_THAT(message_of<DataError>([&] { TeacherImages(folder.path() / "x.h5"); }), HasSubstr("not a file of teacher images"));
}

// A class model and a text model draw; stopped and gone on with, the file is the same.
TEST(TeacherImages, AModelDrawsThem) {
  for (const std::string& conditioner : {testing::kGanText, std::string("{kind: class, dim: 12}")}) {
    const testing::ScratchFolder folder("teacher");
    testing::write_conv_features(folder.path() / "conv");
    FeatureGanConfig gan;
    gan.features = (folder.path() / "conv").string(), gan.real_share = 1;
    testing::GanBench bench(gan, {.conditioner = conditioner, .precision = Precision::float32});
    const pipelines::DiffusionModel& m = bench.model;
    TensorMap weights;
    for (const auto& [name, tensor] : m.unet->state()) weights.emplace(name, tensor.detach());
    pipelines::save_diffusion_model(folder.path() / "model", {.unet = m.unet->config(), .unet_state = weights, .conditioner = *m.conditioner,
                                                              .latent_space = *m.latent_space, .schedule = m.schedule, .prediction = m.prediction,
                                                              .sampling = {.sampler = diffusion::SamplerKind::flow_euler}});
    TeacherDrawing d;
    d.count = 11, d.seed = 2, d.part_rows = 4, d.sampling.batch_size = 3, d.sampling.diffusion.steps = 2, d.sampling.guidance = 1.5;
    const auto draw = [&](const char* name, int64_t stop) {
      draw_teacher_images(*bench.data, folder.path() / "model", at::kCPU, d, folder.path() / name, [&](int64_t done, int64_t total) {
        EXPECT_EQ(total, 11);
        if (done >= stop) throw std::runtime_error("stop");
      });
    };
    draw("whole.h5", 100);
    EXPECT_THROW(draw("resumed.h5", 6), std::runtime_error);
    EXPECT_FALSE(fs::exists(folder.path() / "resumed.h5"));
    draw("resumed.h5", 100);
    const TeacherImages whole(folder.path() / "whole.h5"), resumed(folder.path() / "resumed.h5");
    EXPECT_EQ(whole.facts().key(), resumed.facts().key());
    EXPECT_EQ(whole.facts().options, "guidance=1.5 sampling_steps=2");
    EXPECT_TRUE(whole.same_samples(*bench.data));
    whole.check_teacher(folder.path() / "model");
    std::vector<int64_t> ids;
    for (int64_t k = 0; k < 11; ++k) ids.push_back(k * 48 / 11);
    const Tensor asked = at::tensor(ids, at::kLong);
    const auto a = whole.pick(asked, {1, 16, 16}, true), b = resumed.pick(asked, {1, 16, 16}, true);
    EXPECT_EQ(a.same_sample, 11);
    EXPECT_LE((a.images - b.images).abs().max().item<double>(), 1.01 / 127.5);  // another batch split may round another way
    EXPECT_THAT(a.captions, ::testing::ElementsAreArray(b.captions));
    // What `fewstep sample` draws for that prompt, seed and id.
    const auto pipeline = pipelines::load(folder.path() / "model", at::kCPU);
    pipelines::GenerateOptions options = d.sampling;
    options.diffusion.height = options.diffusion.width = 16;
    const Sample s = bench.data->get(ids[4], 2, 0);
    const std::string prompt = m.conditioner->kind() == "class" ? bench.data->class_names()[static_cast<size_t>(s.label)] : s.caption;
    const std::vector<int64_t> id = {ids[4]};
    const Tensor drawn = pipeline->generate({prompt}, 2, id, options).images[0];
    EXPECT_LE((drawn.to(at::kFloat) / 127.5 - 1 - a.images[4]).abs().max().item<double>(), 1.01 / 127.5);
    d.count = 49;
    EXPECT_THAT(message_of<ConfigError>([&] { draw("more.h5", 100); }), HasSubstr("--count: 49 images for the 48 samples"));
  }
}

}  // namespace
}  // namespace fewstep
