#include "eval/names.h"

#include <algorithm>
#include <array>

#include "src/base/error.h"
#include "src/base/text.h"

namespace fewstep::eval {
namespace {

// Names readers take for the published protocol. Compared without case, '-', '_' and ' '.
constexpr std::array<std::string_view, 14> kEstablished = {
    "fid",   "kid",       "clipscore",   "is",   "inceptionscore", "cmmd", "geneval",
    "hpsv2", "pickscore", "imagereward", "sfid", "patchfid",       "lpips", "rfid"};
// Ours, but nothing without the encoder's name and hash.
constexpr std::array<std::string_view, 17> kOfEncoder = {
    "FD",     "KD",      "MMD",      "FD_difference",  "sFD",       "patch_FD",   "precision",
    "recall", "density", "coverage", "class_accuracy", "diversity", "perceptual", "CLIPScore_difference",
    "rFD",    "FD_teacher", "in_loop_FD"};
// Before the brackets.
constexpr std::array<std::string_view, 16> kOfGenerator = {
    "step_compression", "passes",        "ms_per_pass",          "tokens_per_second", "decoder_overhead", "speed_up",
    "token_nll",        "token_outside", "token_nll_difference", "token_auc",         "draft_stability",  "noise_snr",
    "nfe_compression",  "latency_ms",    "gflop_per_image",      "training_tflop"};

std::string squeeze(std::string_view name) {
  std::string out;
  for (char c : to_lower(name))
    if (c != '-' && c != '_' && c != ' ') out += c;
  return out;
}

}  // namespace

// The file of pytorch-fid and torch-fidelity, pt_inception-2015-12-05-6726825d.pth: its name ends in the first digits
// of its SHA-256, as torch.hub checks them. The CLIP files of OpenAI: their addresses hold the whole hash.
std::span<const OfficialWeights> official_weights() {
  static constexpr OfficialWeights kList[] = {
      {"6726825d", "FD", "FID"},
      {"6726825d", "sFD", "sFID"},
      {"6726825d", "rFD", "rFID"},
      {"6726825d", "patch_FD", "patch-FID"},
      {"6726825d", "KD", "KID"},
      {"6726825d", "IS", "IS"},
      {"397923af", "perceptual", "LPIPS"},  // torchvision's vgg16-397923af.pth; see PerceptualDistance
      {"40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "CLIPScore", "CLIP-Score"},  // ViT-B/32
      {"5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "CLIPScore", "CLIP-Score"},  // ViT-B/16
      {"b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "CLIPScore", "CLIP-Score"},  // ViT-L/14
      {"3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", "CLIPScore", "CLIP-Score"},  // at 336 pixels
      {"3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", "MMD", "CMMD"}};
  return kList;
}

namespace {
// By the hash of the weights, or by that of the download which they were converted from.
bool earns(const EncoderIdentity& e, const OfficialWeights& w) {
  return e.sha256 == w.sha256 || (w.sha256.size() >= 8 && e.source_sha256.starts_with(w.sha256));
}
}  // namespace

std::string metric_name(std::string_view metric, const EncoderIdentity& encoder, std::string_view detail,
                        std::span<const OfficialWeights> allowed) {
  // A spatial map's Frechet distance is another metric (sFID, Nash et al. 2021), whoever asks for it.
  if (metric == "FD" && encoder.pipeline.find("tap=spatial") != std::string::npos) metric = "sFD";
  std::string details = encoder.pipeline;
  if (!detail.empty()) details += fmt::format("{}{}", details.empty() ? "" : ",", detail);
  for (const OfficialWeights& w : allowed)
    if (w.metric == metric && earns(encoder, w))
      return details.empty() ? std::string(w.official_name) : fmt::format("{}[{}]", w.official_name, details);
  FEW_CHECK(encoder.sha256.size() == 64, "encoder '{}' has no SHA-256 ('{}')", encoder.name, encoder.sha256);
  return fmt::format("{}[{}@{}{}{}]", metric, encoder.name, encoder.sha256.substr(0, 8), details.empty() ? "" : ",",
                     details);
}

void check_metric_name(std::string_view name, std::span<const EncoderIdentity> encoders,
                       std::span<const OfficialWeights> allowed) {
  const size_t bracket = name.find('[');
  const std::string_view bare = name.substr(0, bracket);
  if (name.find('@') != std::string_view::npos) return;  // says which encoder it is
  if (std::find(kOfEncoder.begin(), kOfEncoder.end(), bare) != kOfEncoder.end())
    fail<ConfigError>("'{}' says nothing without its encoder, as in {}[judge@1a2b3c4d]", name, bare);
  if (std::find(kEstablished.begin(), kEstablished.end(), squeeze(bare)) == kEstablished.end()) return;
  for (const OfficialWeights& w : allowed)
    for (const EncoderIdentity& e : encoders)
      if (earns(e, w) && w.official_name == bare) return;
  fail<ConfigError>(
      "'{}' may only be printed for the published network's weights; name the encoder instead, as in "
      "FD[judge@1a2b3c4d], KD[...], CLIPScore[...]",
      name);
}

bool is_generator_metric(std::string_view name) {
  return std::find(kOfGenerator.begin(), kOfGenerator.end(), name.substr(0, name.find('['))) != kOfGenerator.end();
}

}  // namespace fewstep::eval
