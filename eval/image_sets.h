// The image sets an evaluation compares: real ones, what a model makes, and controls of known quality.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "eval/eval_config.h"
#include "src/models/vq_model.h"
#include "src/tensor/tensor.h"

namespace fewstep::eval {

struct ImageSet {
  std::string label;
  Tensor images;                      // uint8 [N, C, H, W]
  std::vector<std::string> captions;  // N
  Tensor labels;                      // int64 [N], -1 unknown
  Tensor originals = {};              // uint8 [N, C, H, W]: what each image is made from (reconstructions, half_resolution)
  // Of sets a model made, else empty and 0:
  double steps = 0, nfe = 0;                    // per image, the mean
  double step_compression = 0;                  // mean over images of tokens / steps
  Tensor tokens = {};                           // int64 [N, L] of autoregressive models
  std::vector<pipelines::Generated> runs = {};  // one a batch; their images and tokens are views of those above
};

// Makes each set once. The test split is permuted by the seed: the first `reference_samples` are the reference, the
// next `num_samples` the real set, whose captions every other set shares. So set X's image i and real image i match.
class ImageSets {
 public:
  ImageSets(const EvalConfig& config, const Dataset& test, at::Device device);
  const ImageSet& reference();                   // loaded at the first use, with the real set
  const ImageSet& get(const std::string& name);  // a name of image_set_kinds()
  // The set "samples" with other options, of the first `count` captions (0: all); not kept.
  ImageSet samples(const pipelines::GenerateOptions& options, int64_t count = 0);
  const std::vector<std::string>& captions() { return real().captions; }  // of the real set, in its order
  at::Device device() const { return device_; }
  const ImageSet& training_images();             // up to 20,000 of the train split
  pipelines::Pipeline& pipeline();               // ConfigError without `model`
  // `count` samples of each prompt, prompt by prompt, from indices no set uses.
  Tensor sample_prompts(const std::vector<std::string>& prompts, int64_t count);

 private:
  ImageSet make(const std::string& name);
  ImageSet generate(const std::vector<std::string>& prompts, Tensor labels, int64_t first_index,
                    const std::string& label, const pipelines::GenerateOptions& options);
  ImageSet from_folder();
  const ImageSet& real();
  ImageSet like_real(Tensor images);  // with the captions and labels of the real set
  Tensor reconstruct(const Tensor& images);
  Tensor train_tokens();
  const models::VQModel& tokenizer();
  const nn::Module& first_stage();  // a VQModel or an AutoencoderKL

  const EvalConfig& config_;
  const Dataset& test_;
  at::Device device_;
  ImageSet reference_, real_, training_;
  std::map<std::string, ImageSet> made_;
  std::unique_ptr<pipelines::Pipeline> pipeline_;
  std::unique_ptr<nn::Module> tokenizer_;
};

// Images, captions and labels of these samples.
ImageSet load_images(const Dataset& dataset, const std::vector<int64_t>& indices, uint64_t seed);
// Labels the captions name (data sets with parsable captions), else -1.
Tensor labels_of(const std::vector<std::string>& captions);

}  // namespace fewstep::eval
