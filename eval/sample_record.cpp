#include "eval/sample_record.h"

#include <charconv>

#include "src/base/error.h"
#include "src/base/hash.h"
#include "src/io/safetensors.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace fs = std::filesystem;
namespace {

constexpr const char* kFormat = "fewstep-samples-1";

int64_t number_of(const std::string& text, const fs::path& path) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    fail<DataError>("{}: seed '{}' is no number", path.string(), text);
  return value;
}

}  // namespace

Tensor caption_keys(const std::vector<std::string>& captions) {
  std::vector<int64_t> keys;
  for (const std::string& caption : captions) keys.push_back(static_cast<int64_t>(fnv1a64(caption)));
  return at::tensor(keys, at::kLong);
}

void save_samples(const fs::path& path, const SampleRecord& r) {
  TensorMap tensors = {{"tokens", r.tokens}, {"caption_keys", r.caption_keys}};
  if (r.features.defined()) tensors.emplace("features", r.features.to(at::kFloat));
  const Tensor keys = r.caption_keys.contiguous();
  const std::string_view bytes(static_cast<const char*>(keys.const_data_ptr()), static_cast<size_t>(keys.nbytes()));
  io::write_safetensors(path, tensors,
                        {{"format", kFormat},
                         {"captions_sha256", sha256_hex(bytes)},
                         {"seed", std::to_string(r.seed)},
                         {"judge", r.judge},
                         {"model_sha256", r.model},
                         {"decoding", r.decoding},
                         {"protocol", r.protocol}});
}

SampleRecord load_samples(const fs::path& path) {
  if (!fs::exists(path))
    fail<DataError>(
        "{}: no such file; an evaluation of an autoregressive model with 'samples' among its sets leaves it",
        path.string());
  const io::Safetensors file(path);
  auto metadata = file.metadata();
  if (metadata["format"] != kFormat)
    fail<DataError>("{}: format '{}', expected '{}'", path.string(), metadata["format"], kFormat);
  for (const char* name : {"tokens", "caption_keys"})
    if (!file.contains(name)) fail<DataError>("{}: no tensor '{}'", path.string(), name);
  SampleRecord r;
  r.tokens = file.get("tokens"), r.caption_keys = file.get("caption_keys");
  if (file.contains("features")) r.features = file.get("features");
  const int64_t N = r.caption_keys.numel();
  const bool shapes = r.tokens.dim() == 2 && r.tokens.size(0) == N && r.tokens.scalar_type() == at::kLong &&
                      (!r.features.defined() || (r.features.dim() == 2 && r.features.size(0) == N));
  if (!shapes) fail<DataError>("{}: expected tokens int64 [N, L], features [N, D] and caption_keys [N]", path.string());
  r.seed = number_of(metadata["seed"], path);
  r.judge = metadata["judge"], r.model = metadata["model_sha256"], r.decoding = metadata["decoding"];
  r.protocol = metadata["protocol"];
  return r;
}

SampleRecord open_baseline(const fs::path& folder, int64_t seed) {
  const fs::path path = folder / "samples.safetensors";
  SampleRecord r = load_samples(path);
  if (r.seed != seed)
    fail<ConfigError>("paired_with: {} was made with seed {}, this evaluation with {}; pairs need one seed",
                      path.string(), r.seed, seed);
  return r;
}

SampleRecord load_baseline(const fs::path& folder, const SampleRecord& own) {
  const fs::path path = folder / "samples.safetensors";
  SampleRecord r = open_baseline(folder, own.seed);
  if (r.tokens.size(1) != own.tokens.size(1))
    fail<ConfigError>("paired_with: {} has images of {} tokens, this evaluation of {}", path.string(), r.tokens.size(1),
                      own.tokens.size(1));
  const int64_t n = std::min(r.tokens.size(0), own.tokens.size(0));
  const Tensor differ = r.caption_keys.slice(0, 0, n).ne(own.caption_keys.slice(0, 0, n));
  if (differ.any().item<bool>())
    fail<ConfigError>(
        "paired_with: sample {} of {} has another caption; pairs need the same data, seed and reference_samples",
        differ.nonzero()[0].item<int64_t>(), path.string());
  r.tokens = r.tokens.slice(0, 0, n), r.caption_keys = r.caption_keys.slice(0, 0, n);
  if (r.features.defined()) r.features = r.features.slice(0, 0, n);
  return r;
}

}  // namespace fewstep::eval
