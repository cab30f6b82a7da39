// fewstep data teacher: pictures that a model makes for the samples of a data set, for the real side of a discriminator.
#include <CLI/CLI.hpp>

#include <filesystem>
#include <map>
#include <memory>
#include <optional>

#include "src/base/error.h"
#include "src/base/progress.h"
#include "src/base/text.h"
#include "src/config/config.h"
#include "src/dist/world.h"
#include "tools/data_source.h"
#include "tools/data_teacher_command.h"
#include "trainers/teacher_images.h"

namespace fewstep {
namespace {
namespace fs = std::filesystem;

const std::map<std::string, dist::DeviceKind> kTeacherDevices = {
    {"auto", dist::DeviceKind::automatic}, {"cpu", dist::DeviceKind::cpu}, {"cuda", dist::DeviceKind::cuda}};

struct TeacherArguments {
  DataArguments data;
  std::string model, device = "auto";
  std::vector<std::string> options;  // key=value of GenerateOptions
  int64_t count = 0, seed = 0, part = 512;
};

void draw_teacher(const TeacherArguments& a) {
  const auto dataset = open_dataset(a.data);
  const auto world = dist::World::from_environment({.device = kTeacherDevices.at(a.device)});
  TeacherDrawing drawing;
  drawing.count = a.count, drawing.seed = a.seed, drawing.part_rows = a.part;
  drawing.split = data_split(a.data), drawing.model_name = a.model;
  config::read_overrides(a.options, config::describe_root<pipelines::GenerateOptions>(), &drawing.sampling);
  if (drawing.sampling.diffusion.height > 0 || drawing.sampling.diffusion.width > 0)
    fail<ConfigError>("--with height, width: pictures have the sizes of the data set's samples");
  std::optional<Progress> progress;
  int64_t before = 0;
  const TeacherFacts facts = draw_teacher_images(*dataset, a.model, world->device(), drawing, a.data.out, [&](int64_t done, int64_t total) {
    if (!progress) progress.emplace("teacher", total, before = done);
    progress->update(done);
  });
  progress->finish();
  fmt::print("{}: {} images by {}{} for {}{}, {}, key {}\n", a.data.out, facts.count, facts.model_name,
             facts.options.empty() ? "" : " (" + facts.options + ")", facts.source,
             before > 0 ? fmt::format(" ({} were there)", before) : "", human_bytes(fs::file_size(a.data.out)), facts.key());
}

}  // namespace

void add_data_teacher_command(CLI::App* data) {
  auto a = std::make_shared<TeacherArguments>();
  auto* command = add_data_action(data, "teacher", "draw a picture for every sample: what a distillation's discriminator takes for real", a->data);
  command->add_option("--model", a->model, "the teacher: run, checkpoint or model folder")->required();
  command->add_option("--out", a->data.out, "file to write, .h5; goes on where an interrupted run stopped")->required();
  command->add_option("--count", a->count, "samples, evenly spread over the split; 0: all")->check(CLI::NonNegativeNumber);
  command->add_option("--seed", a->seed, "of the noise, with the sample's id")->check(CLI::NonNegativeNumber);
  command->add_option("--with", a->options, "how they are drawn, key=value as of `fewstep sample`: guidance=1.5 sampling_steps=50 batch_size=32");
  command->add_option("--part", a->part, "images between two states an interrupted run goes on from")->check(CLI::PositiveNumber);
  command->add_option("--device", a->device, "auto, cpu or cuda")->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  command->footer("Example:\n"
                  "  fewstep data teacher configs/distill/dmd2_gan.yaml --model runs/sdxl/text16 --count 2000 \\\n"
                  "      --with guidance=1.5 sampling_steps=50 --out runs/distill/teacher.h5\n"
                  "An interrupted run goes on with the same command; other settings than the file's are refused.");
  command->callback([a] { draw_teacher(*a); });
}

}  // namespace fewstep
