#include "eval/image_sets.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "datasets/fashion_attributes.h"
#include "eval/distortions.h"
#include "eval/encoder.h"
#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/json.h"
#include "src/base/progress.h"
#include "src/base/signals.h"
#include "src/base/table.h"
#include "src/io/image.h"
#include "src/models/autoencoder_kl.h"
#include "src/models/model.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep::eval {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kTrainingImages = 20000;         // the Gaussian and the token marginals are fitted to
constexpr int64_t kExtraIndex = int64_t{1} << 40;  // first sample index of pictures that belong to no set

std::vector<int64_t> permutation(int64_t n, uint64_t seed) {
  at::Generator generator = generator_for(seed, Stream::eval, 1);
  const Tensor p = at::randperm(n, generator, at::kLong);
  return {p.data_ptr<int64_t>(), p.data_ptr<int64_t>() + n};
}

template <class T>
std::vector<T> slice_of(const std::vector<T>& v, int64_t begin, int64_t end) {
  return {v.begin() + begin, v.begin() + end};
}

template <class F>
Tensor in_batches(const Tensor& x, F f) {
  const NoGrad no_grad;
  std::vector<Tensor> out;
  for (int64_t i = 0; i < x.size(0); i += 250) {
    if (signals::stop_requested()) throw Interrupted("evaluation stopped; nothing was written");
    out.push_back(f(x.slice(0, i, std::min<int64_t>(i + 250, x.size(0)))));
  }
  return at::cat(out);
}

}  // namespace

ImageSet load_images(const Dataset& dataset, const std::vector<int64_t>& indices, uint64_t seed) {
  ImageSet set;
  std::vector<Tensor> images;
  std::vector<int64_t> labels;
  for (int64_t index : indices) {
    Sample sample = dataset.get(index, seed, 0);
    if (!images.empty() && sample.image.sizes() != images[0].sizes())
      fail<DataError>("{}: sample {} is {}, the first was {}; evaluation needs one size (set the data set's resize)",
                      dataset.description(), sample.id, c10::str(sample.image.sizes()), c10::str(images[0].sizes()));
    images.push_back(std::move(sample.image));
    set.captions.push_back(std::move(sample.caption));
    labels.push_back(sample.label);
  }
  if (images.empty()) fail<DataError>("{}: no images", dataset.description());
  set.images = at::stack(images);
  set.labels = at::tensor(labels, at::kLong);
  return set;
}

Tensor labels_of(const std::vector<std::string>& captions) {
  std::vector<int64_t> labels;
  for (const std::string& caption : captions) {
    const auto parsed = parse_caption(caption);
    labels.push_back(parsed ? parsed->label : -1);
  }
  return at::tensor(labels, at::kLong);
}

ImageSets::ImageSets(const EvalConfig& config, const Dataset& test, at::Device device)
    : config_(config), test_(test), device_(device) {}

const ImageSet& ImageSets::reference() {
  if (!reference_.images.defined()) {
    const int64_t R = config_.reference_samples, N = config_.num_samples;
    if (R + N > test_.size())
      fail<ConfigError>(
          "reference_samples {} + num_samples {} exceed the {} images of the split ({}); lower one of them", R, N,
          test_.size(), test_.description());
    const auto seed = static_cast<uint64_t>(config_.seed);
    const std::vector<int64_t> order = permutation(test_.size(), seed);
    reference_ = load_images(test_, slice_of(order, 0, R), seed);
    real_ = load_images(test_, slice_of(order, R, R + N), seed);
  }
  return reference_;
}

const ImageSet& ImageSets::real() {
  reference();
  return real_;
}

const ImageSet& ImageSets::get(const std::string& name) {
  const auto it = made_.find(name);
  if (it != made_.end()) return it->second;
  ImageSet set = make(name);
  set.label = find_entry(image_set_kinds(), name, "image set").label;
  return made_.emplace(name, std::move(set)).first->second;
}

ImageSet ImageSets::make(const std::string& name) {
  const auto seed = static_cast<uint64_t>(config_.seed);
  if (name == "real") return like_real(real().images);
  if (name == "half_resolution" || name == "reconstructions") {
    ImageSet set = like_real(name == "reconstructions" ? reconstruct(real().images) : down_up(real().images, 2));
    set.originals = real().images;
    return set;
  }
  if (name == "gaussian") {
    const ImageSet& train = training_images();
    return like_real(ClassGaussian(train.images, train.labels).sample(real().labels, seed));
  }
  if (name == "independent_tokens") {
    const Tensor tokens = train_tokens();  // [n, h, w]
    const Tensor drawn = independent_tokens(tokens.flatten(1), config_.num_samples, seed)
                             .reshape({config_.num_samples, tokens.size(1), tokens.size(2)});
    return like_real(in_batches(
        drawn, [&](const Tensor& t) { return io::to_bytes(tokenizer().decode_indices(t.to(device_)).to(at::kCPU)); }));
  }
  if (name == "compositional") {
    const std::vector<std::string> known = compositional_prompts();
    if (known.empty()) fail<ConfigError>("set compositional: this data set has no held-out combinations");
    std::vector<std::string> prompts;
    for (int64_t i = 0; i < config_.compositional_samples; ++i)
      prompts.push_back(known[static_cast<size_t>(i) % known.size()]);
    return generate(prompts, labels_of(prompts), config_.num_samples, name, config_.generate);
  }
  FEW_CHECK(name == "samples", "image set '{}' is in the table but nobody makes it", name);
  return config_.images.empty() ? samples(config_.generate) : from_folder();
}

ImageSet ImageSets::samples(const pipelines::GenerateOptions& options, int64_t count) {
  const int64_t N = count > 0 ? std::min(count, config_.num_samples) : config_.num_samples;
  if (config_.prompts_file.empty())
    return generate(slice_of(real().captions, 0, N), real().labels.slice(0, 0, N), 0, "samples", options);
  std::vector<std::string> lines, prompts;
  for (const std::string& line : split(read_text(config_.prompts_file), '\n'))
    if (!trim(line).empty()) lines.emplace_back(trim(line));
  if (lines.empty()) fail<DataError>("{}: no prompts in it (one a line is expected)", config_.prompts_file);
  for (int64_t i = 0; i < N; ++i) prompts.push_back(lines[static_cast<size_t>(i) % lines.size()]);
  return generate(prompts, labels_of(prompts), 0, "samples", options);
}

pipelines::Pipeline& ImageSets::pipeline() {
  if (config_.model.empty()) fail<ConfigError>("this needs 'model': a run or model folder that makes samples");
  if (!pipeline_) pipeline_ = pipelines::load(config_.model, device_);
  return *pipeline_;
}

ImageSet ImageSets::generate(const std::vector<std::string>& prompts, Tensor labels, int64_t first_index,
                             const std::string& label, const pipelines::GenerateOptions& options) {
  ImageSet set{.label = {}, .images = {}, .captions = prompts, .labels = std::move(labels)};
  const auto total = static_cast<int64_t>(prompts.size());
  std::vector<Tensor> images, tokens;
  Progress progress(label, total);
  for (int64_t i = 0; i < total; i += options.batch_size) {
    if (signals::stop_requested()) throw Interrupted("evaluation stopped while sampling; nothing was written");
    const int64_t end = std::min(i + options.batch_size, total);
    set.runs.push_back(pipeline().generate(slice_of(prompts, i, end), static_cast<uint64_t>(config_.seed),
                                           first_index + i, options));
    const pipelines::Generated& made = set.runs.back();
    images.push_back(made.images);
    if (made.tokens.defined()) tokens.push_back(made.tokens);
    const double share = static_cast<double>(end - i) / static_cast<double>(total);
    set.steps += share * made.steps, set.nfe += share * made.nfe, set.step_compression += share * made.step_compression;
    progress.update(end);
  }
  progress.finish();
  set.images = at::cat(images);
  if (!tokens.empty()) set.tokens = at::cat(tokens);
  int64_t first = 0;
  for (pipelines::Generated& run : set.runs) {  // one copy of everything, not two
    const int64_t n = run.images.size(0);
    run.images = set.images.narrow(0, first, n);
    if (run.tokens.defined()) run.tokens = set.tokens.narrow(0, first, n);
    first += n;
  }
  return set;
}

Tensor ImageSets::sample_prompts(const std::vector<std::string>& prompts, int64_t count) {
  std::vector<std::string> all;
  for (const std::string& prompt : prompts) all.insert(all.end(), static_cast<size_t>(count), prompt);
  return generate(all, {}, kExtraIndex, "pictures", config_.generate).images;
}

// Order and captions from metadata.jsonl, never from the file system's order.
ImageSet ImageSets::from_folder() {
  const fs::path folder = config_.images;
  std::ifstream file(folder / "metadata.jsonl");
  if (!file) fail<DataError>("{}: no metadata.jsonl with the images' file_name and text", folder.string());
  ImageSet set;
  std::vector<Tensor> images;
  const auto channels = real().images.size(1) == 1 ? io::Channels::grey : io::Channels::rgb;
  for (std::string line; std::getline(file, line);) {
    if (trim(line).empty()) continue;
    const Json entry = Json::parse(line, nullptr, false);
    if (!entry.is_object() || !entry.contains("file_name"))
      fail<DataError>("{}: line {} is no object with file_name", (folder / "metadata.jsonl").string(),
                      images.size() + 1);
    images.push_back(io::read_image(folder / entry["file_name"].get<std::string>(), channels));
    if (images.back().sizes() != images[0].sizes())
      fail<DataError>("{}: {} has another size than the first image", folder.string(),
                      entry["file_name"].get<std::string>());
    set.captions.push_back(entry.value("text", ""));
    if (static_cast<int64_t>(images.size()) == config_.num_samples) break;
  }
  if (static_cast<int64_t>(images.size()) < config_.num_samples)
    fail<DataError>("{}: {} images, num_samples asks for {}; comparisons need equal N", folder.string(), images.size(),
                    config_.num_samples);
  set.images = at::stack(images);
  set.labels = labels_of(set.captions);
  return set;
}

ImageSet ImageSets::like_real(Tensor images) {
  return {.label = {}, .images = std::move(images), .captions = real().captions, .labels = real().labels};
}

const nn::Module& ImageSets::first_stage() {
  if (!tokenizer_) {
    const std::string& folder = config_.tokenizer.empty() ? config_.model : config_.tokenizer;
    if (folder.empty())
      fail<ConfigError>("reconstructions and tokens need 'tokenizer' or 'model': a folder with a VQ model or an AutoencoderKL");
    tokenizer_ = models::load_model(find_component(folder, {"VQModel", "AutoencoderKL"}));
    tokenizer_->to(device_);
    tokenizer_->train(false);
  }
  return *tokenizer_;
}

const models::VQModel& ImageSets::tokenizer() {
  const auto* vq = dynamic_cast<const models::VQModel*>(&first_stage());
  if (vq == nullptr) fail<ConfigError>("{} has no tokens: an AutoencoderKL is no VQ model", config_.tokenizer.empty() ? config_.model : config_.tokenizer);
  return *vq;
}

// Of an AutoencoderKL by the posterior's mode.
Tensor ImageSets::reconstruct(const Tensor& images) {
  if (const auto* kl = dynamic_cast<const models::AutoencoderKL*>(&first_stage()))
    return in_batches(images, [&](const Tensor& x) {
      return io::to_bytes(kl->decode(kl->encode(io::to_float(x).to(device_)).mean).to(at::kCPU));
    });
  const models::VQModel& vq = tokenizer();
  return in_batches(images, [&](const Tensor& x) {
    return io::to_bytes(vq.decode(vq.quantize(vq.encode(io::to_float(x).to(device_))).latents).to(at::kCPU));
  });
}

const ImageSet& ImageSets::training_images() {
  if (!training_.images.defined()) {
    const auto train = config_.data->build(Split::train);
    std::vector<int64_t> indices = permutation(train->size(), static_cast<uint64_t>(config_.seed));
    indices.resize(static_cast<size_t>(std::min(train->size(), kTrainingImages)));
    training_ = load_images(*train, indices, static_cast<uint64_t>(config_.seed));
  }
  return training_;
}

Tensor ImageSets::train_tokens() {
  const models::VQModel& vq = tokenizer();
  // Marginals of 5,000 images are exact enough (a codebook entry's share to one percent).
  const Tensor images = training_images().images.slice(0, 0, 5000);
  return in_batches(images, [&](const Tensor& x) {
    return vq.quantize(vq.encode(io::to_float(x).to(device_))).indices.to(at::kCPU);
  });
}

}  // namespace fewstep::eval
