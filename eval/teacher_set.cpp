#include "eval/teacher_set.h"

#include "eval/generation.h"
#include "src/base/error.h"
#include "src/dist/world.h"
#include "src/io/image.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {

void describe(config::Visitor& v, TeacherConfig& c) {
  v.field("model", c.model, "run or model folder of the teacher; empty: none");
  v.field("images", c.images, "folder that its samples are kept in, for all evaluations that name it; empty: <out>/teacher");
  v.field("seed", c.seed, "of its noise; another than the evaluation's, so that the teacher's own distance to itself is a floor",
          config::kNonNegative);
  v.field("generate", c.generate, "how it is sampled: guidance, sampling_steps, ...");
}

TeacherSet teacher_set(const TeacherConfig& config, const std::filesystem::path& folder, const std::vector<std::string>& captions,
                       at::Device device) {
  GenerationPlan plan{.folder = folder, .prompts = {}, .model_sha256 = model_sha256(pipelines::find_model(config.model)),
                      .seed = static_cast<uint64_t>(config.seed), .options = config.generate};
  for (size_t i = 0; i < captions.size(); ++i) {
    const auto id = static_cast<int64_t>(i);
    plan.prompts.push_back({.caption_id = id, .image_id = id, .file_name = {}, .text = captions[i]});
  }
  const auto world = dist::World::single(device);
  const auto pipeline = pipelines::load(config.model, device);
  TeacherSet set;
  try {
    set.nfe = generate_images(plan, *pipeline, *world).nfe;
  } catch (const ConfigError& e) {
    fail<ConfigError>("teacher.images: {}", e.what());
  }
  std::vector<Tensor> images;
  for (const Prompt& prompt : plan.prompts) images.push_back(io::read_image(folder / sample_name(prompt.caption_id), io::Channels::as_is));
  set.images = at::stack(images);
  return set;
}

}  // namespace fewstep::eval
