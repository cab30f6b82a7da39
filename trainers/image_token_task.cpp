#include "trainers/image_token_task.h"

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/decoding/decoders.h"
#include "src/io/image.h"
#include "src/models/model.h"
#include "src/models/model_folder.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "trainers/captions.h"

namespace fewstep {
namespace fs = std::filesystem;

std::unique_ptr<models::VQModel> load_vq(const std::string& folder, std::string_view key, at::Device device) {
  auto module = models::load_model(models::component_folder(folder, {"vq"}));
  auto* vq = dynamic_cast<models::VQModel*>(module.get());
  if (!vq) fail<ConfigError>("{}: {} holds no VQModel", key, folder);
  module.release();
  vq->to(device);
  vq->requires_grad(false);
  return std::unique_ptr<models::VQModel>(vq);
}

ImageTokenTask::ImageTokenTask(std::unique_ptr<models::VQModel> vq, text::BpeTokenizer tokenizer,
                               const models::SequenceLayout& layout, at::Device device)
    : vq_(std::move(vq)), tokenizer_(std::move(tokenizer)), layout_(layout), device_(device) {}

ImageTokenTask ImageTokenTask::load(const fs::path& model_folder, std::string_view key, at::Device device) {
  const fs::path index = model_folder / "model_index.json";
  const Json json = read_json(index);
  if (!json.contains("sequence_layout"))
    fail<ConfigError>("{}: {} is a {}: a run of the trainer `autoregressive` is needed", key, index.string(),
                      json.value("_class_name", "model of another kind"));
  const auto layout = models::SequenceLayout::from_json(json.at("sequence_layout"), index.string());
  ImageTokenTask task(load_vq(model_folder.string(), key, device), text::BpeTokenizer::load(model_folder / "tokenizer"), layout,
                      device);
  layout.check(task.tokenizer_.vocab_size(), task.vq_->config().num_vq_embeddings, -1, model_folder.string());
  return task;
}

void ImageTokenTask::check_images(const Sample& first, std::string_view key) const {
  const int64_t channels = first.image.size(0), height = first.image.size(1), width = first.image.size(2);
  const int64_t factor = vq_->config().factor();
  if (channels != vq_->config().in_channels)
    fail<ConfigError>("{}: its tokenizer was trained on {} channels, the data has {}", key, vq_->config().in_channels, channels);
  if (height != layout_.grid_height * factor || width != layout_.grid_width * factor)
    fail<ConfigError>("{}: its grid of {} x {} codes is one of {} x {} pixels, the data's images are {} x {}", key,
                      layout_.grid_height, layout_.grid_width, layout_.grid_height * factor, layout_.grid_width * factor,
                      height, width);
}

Tensor ImageTokenTask::prompts(const std::vector<std::string>& captions) const {
  return layout_.prompts(encode_all(tokenizer_, captions)).to(device_);
}

Tensor ImageTokenTask::drop_captions(const Tensor& prompts, const Tensor& ids, double rate, const StepContext& at) const {
  if (rate <= 0) return prompts;
  const Tensor u = uniform_by_id(ids.to(at::kCPU), 1, at.seed, Stream::dropout, at.step).to(device_);
  const Tensor null = at::tensor(layout_.unconditional_prompt(), prompts.options()).unsqueeze(0);
  return at::where(u.lt(rate), null, prompts);
}

Tensor ImageTokenTask::indices(const Tensor& images) const {
  const NoGrad no_grad;
  return vq_->quantize(vq_->encode(images)).indices;  // [B, h, w]
}

Tensor ImageTokenTask::autoregressive_loss(const models::LlamaForCausalLM& model, const Tensor& prompts,
                                           const Tensor& indices) const {
  const Tensor rows = layout_.rows(prompts, indices);  // [B, P + N]
  const int64_t P = layout_.prompt_length(), N = layout_.image_length();
  const Tensor hidden = model.hidden(model.embed(rows.narrow(1, 0, P + N - 1)));
  return model.token_loss(hidden.narrow(1, P - 1, N), rows.narrow(1, P, N));
}

Tensor ImageTokenTask::sample_grid(const models::LlamaForCausalLM& model, const TrainContext& context,
                                   const pipelines::GenerateOptions& options, uint64_t seed,
                                   const models::EmbeddingNoise* noise) const {
  constexpr int64_t kColumns = 10, kRows = 4;
  const Dataset& data = context.validation && context.validation->size() > 0 ? *context.validation : context.train;
  std::vector<std::string> captions;
  for (int64_t i = 0; i < kRows * kColumns; ++i) captions.push_back(data.get((i % kColumns) % data.size(), seed, 0).caption);
  const auto decoded = decoding::decode(decoding::LlamaImageModel(model, layout_), prompts(captions),
                                        at::arange(kRows * kColumns), seed, options.decoder_options(), noise);
  const Tensor images = vq_->decode_indices(layout_.indices(decoded.codes));
  return io::make_grid(io::to_bytes(images.to(at::kCPU)), kColumns, 2, 2);
}

void ImageTokenTask::save(const fs::path& folder, const Json& more) const {
  models::save_model(folder / "vq", *vq_, vq_->config().to_json());
  tokenizer_.save(folder / "tokenizer");
  Json index = {{"_class_name", "AutoregressivePipeline"},
                {"transformer", {"fewstep", "LlamaForCausalLM"}},
                {"vq", {"fewstep", "VQModel"}},
                {"tokenizer", {"fewstep", "BpeTokenizer"}},
                {"sequence_layout", layout_.to_json()}};
  index.update(more);
  write_json(folder / "model_index.json", index);
}

}  // namespace fewstep
