// fewstep data cache: what the frozen autoencoder and text encoders of a model make of a data set, in one file.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <filesystem>
#include <map>
#include <thread>

#include "datasets/latent_cache.h"
#include "src/base/error.h"
#include "src/base/progress.h"
#include "src/base/text.h"
#include "src/dist/world.h"
#include "src/models/autoencoder_kl.h"
#include "src/models/model_folder.h"
#include "src/pipelines/components.h"
#include "src/pipelines/conditioner.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "tools/data_cache_command.h"
#include "tools/data_source.h"

namespace fewstep {
namespace {
namespace fs = std::filesystem;

const std::map<std::string, dist::DeviceKind> kCacheDevices = {
    {"auto", dist::DeviceKind::automatic}, {"cpu", dist::DeviceKind::cpu}, {"cuda", dist::DeviceKind::cuda}};

struct CacheArguments {
  DataArguments data;
  std::string vae, text, dtype = "float16", device = "auto";
  int64_t variants = 1, seed = 0, batch = 16, smallest_bucket = 0;
};

void check_images(const Dataset& dataset, const models::AutoencoderKlConfig& vae) {
  if (dataset.size() == 0) fail<DataError>("the data set is empty: {}", dataset.description());
  const Sample first = dataset.get(0, 0, 0);
  if (!first.image.defined()) fail<ConfigError>("{}: it holds latents already", dataset.description());
  std::vector<BucketSize> sizes = dataset.buckets();
  if (sizes.empty()) sizes.push_back({first.image.size(1), first.image.size(2)});
  if (first.image.size(0) != vae.in_channels)
    fail<ConfigError>("{}: images of {} channels, the autoencoder takes {}", dataset.description(), first.image.size(0),
                      vae.in_channels);
  for (const BucketSize& size : sizes)
    if (size.height % vae.factor() != 0 || size.width % vae.factor() != 0)
      fail<ConfigError>("{}: images of {} are not a multiple of the autoencoder's {} pixels", dataset.description(),
                        bucket_text(size), vae.factor());
}

CacheEncoders make_encoders(const models::AutoencoderKL& vae, const pipelines::Conditioner* texts, at::Device device) {
  CacheEncoders encoders;
  encoders.images = [&vae, device](const Tensor& images) -> CachedPosterior {
    const NoGrad no_grad;
    const models::Posterior posterior = vae.encode(images.to(device));
    return {posterior.mean, posterior.std()};
  };
  if (texts)
    encoders.texts = [texts](const std::vector<std::string>& captions) -> CachedText {
      const NoGrad no_grad;
      pipelines::ConditionInput input;
      input.captions = captions;
      input.micro =
          at::zeros({static_cast<int64_t>(captions.size()), kMicroNumbers}, at::kFloat);  // not part of the text
      const models::UNetConditions made = (*texts)(input);
      return {made.context, made.pooled};
    };
  return encoders;
}

void cache(const CacheArguments& a) {
  const auto dataset = open_dataset(a.data);
  const auto world = dist::World::from_environment({.device = kCacheDevices.at(a.device)});
  const fs::path vae_folder = models::component_folder(a.vae, {"vae"});
  const auto vae = pipelines::load_frozen_component<models::AutoencoderKL>(vae_folder, "AutoencoderKL");
  vae->to(world->device());
  check_images(*dataset, vae->config());

  CacheOptions options;
  options.variants = a.variants, options.seed = a.seed, options.batch = a.batch;
  options.threads = a.data.threads > 0 ? a.data.threads : std::max<int64_t>(1, std::thread::hardware_concurrency() / 2);
  options.smallest_bucket = a.smallest_bucket;
  options.half = a.dtype == "float16";
  options.split = data_split(a.data);
  options.vae = vae_identity(vae_folder), options.vae_name = a.vae;
  std::unique_ptr<pipelines::Conditioner> texts;
  if (!a.text.empty()) {
    const fs::path folder = models::component_folder(a.text, {"text_encoder", "text_encoder_2"}).parent_path();
    texts = pipelines::Conditioner::load(folder, world->device());
    if (texts->trainable())
      fail<ConfigError>("{}: its text encoder is trained with the network: what it makes of a caption cannot be cached",
                        a.text);
    options.text = text_encoder_identity(folder), options.text_name = a.text;
  }

  Progress progress("cache", dataset->size() * a.variants);
  const CacheFacts facts = write_latent_cache(*dataset, a.data.out, make_encoders(*vae, texts.get(), world->device()),
                                              options, [&](int64_t done) { progress.update(done); });
  progress.finish();
  fmt::print("{}: {} variant{} of {} in {}, key {}\n", a.data.out, a.variants, a.variants == 1 ? "" : "s",
             dataset->description(), human_bytes(fs::file_size(a.data.out)), facts.key());
}

}  // namespace

void add_data_cache_command(CLI::App* data) {
  auto a = std::make_shared<CacheArguments>();
  auto* command =
      add_data_action(data, "cache", "encode a split once: latents, micro-conditioning and texts in one file", a->data);
  command->add_option("--vae", a->vae, "autoencoder: run, checkpoint, model folder, or a folder of AutoencoderKL")
      ->required();
  command->add_option("--text", a->text,
                      "model folder whose frozen text encoders embed the captions; without: no texts");
  command->add_option("--out", a->data.out, "file to write, .h5")->required();
  command->add_option("--variants", a->variants, "crops and flips of every image")->check(CLI::PositiveNumber);
  command->add_option("--seed", a->seed, "of the crops, flips")->check(CLI::NonNegativeNumber);
  command->add_option("--dtype", a->dtype, "of the latents: float16 or float32")
      ->check(CLI::IsMember({"float16", "float32"}));
  command->add_option("--batch", a->batch, "images encoded at once")->check(CLI::PositiveNumber);
  command
      ->add_option("--smallest-bucket", a->smallest_bucket,
                   "buckets with fewer images are treated as the data's small_buckets says; give the global batch")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--threads", a->data.threads, "threads that decode; 0: half the cores")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--device", a->device, "auto, cpu or cuda")->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  command->callback([a] { cache(*a); });
}

}  // namespace fewstep
