// Prompt -> conditions -> noise to latents -> pixels: diffusers' folders of SDXL and Stable Diffusion 1.x, and ours.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "src/pipelines/diffusion_model.h"
#include "src/pipelines/draw_latents.h"
#include "src/pipelines/lora.h"
#include "src/pipelines/pipeline.h"

namespace fewstep::pipelines {

class DiffusionPipeline : public Pipeline {
 public:
  DiffusionPipeline(const std::filesystem::path& folder, at::Device device);
  using Pipeline::generate;
  // ConfigError: options that mean nothing here, sizes that are not multiples of the latents' factor, a refiner on
  // other latents.
  Generated generate(const std::vector<std::string>& prompts, uint64_t seed, std::span<const int64_t> ids,
                     const GenerateOptions& options) override;
  std::string description() const override;
  const DiffusionModel& model() const { return model_; }

 private:
  struct Size {
    int64_t height, width;  // pixels
  };
  struct Prompts {
    std::vector<std::string> texts;
    Tensor ids;  // int64 [B]
    uint64_t seed;
  };
  Size size_of(const GenerateOptions& options) const;
  void check(const GenerateOptions& options) const;
  Tensor read_init_image(const std::string& file, Size size) const;  // float [1, C, H, W] in [-1, 1]
  // What the network is told for these prompts, and how it is sampled; without plan and start.
  DrawRequest request(const DiffusionModel& model, const Prompts& prompts, Size size,
                      const GenerateOptions& options) const;
  DrawnLatents draw(const Prompts& prompts, Size size, const GenerateOptions& options);
  DrawnLatents refine(const DrawnLatents& base, const diffusion::SamplingPlan& plan, const Prompts& prompts, Size size,
                      const GenerateOptions& options);
  const DiffusionModel& refiner(const std::string& folder);  // loaded once
  void use_lora(const DiffusionOptions& options);            // merges it, or takes the last one off
  void warn_of_other_sampling(const diffusion::SamplingPlan& plan, const DiffusionOptions& options, double guidance);

  std::filesystem::path folder_;
  at::Device device_;
  DiffusionModel model_;
  std::unique_ptr<DiffusionModel> refiner_ = {};
  std::string refiner_folder_ = {};
  std::unique_ptr<MergedLora> lora_ = {};
  std::string warned_ = {};
};

}  // namespace fewstep::pipelines
