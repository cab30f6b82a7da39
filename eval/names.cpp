#include "eval/names.h"

#include <algorithm>
#include <array>

#include "src/base/error.h"
#include "src/base/text.h"

namespace fewstep::eval {
namespace {

// Names readers take for the published protocol. Compared without case, '-', '_' and ' '.
constexpr std::array<std::string_view, 6> kEstablished = {"fid", "kid", "clipscore", "is", "inceptionscore", "cmmd"};

std::string squeeze(std::string_view name) {
  std::string out;
  for (char c : to_lower(name))
    if (c != '-' && c != '_' && c != ' ') out += c;
  return out;
}

}  // namespace

// Filled when the Inception and CLIP loaders arrive; until then no weights earn an established name.
std::span<const OfficialWeights> official_weights() { return {}; }

std::string metric_name(std::string_view metric, const EncoderIdentity& encoder, std::string_view detail,
                        std::span<const OfficialWeights> allowed) {
  for (const OfficialWeights& w : allowed)
    if (w.sha256 == encoder.sha256 && w.metric == metric)
      return detail.empty() ? std::string(w.official_name) : fmt::format("{}[{}]", w.official_name, detail);
  FEW_CHECK(encoder.sha256.size() == 64, "encoder '{}' has no SHA-256 ('{}')", encoder.name, encoder.sha256);
  return fmt::format("{}[{}@{}{}{}]", metric, encoder.name, encoder.sha256.substr(0, 8), detail.empty() ? "" : ",",
                     detail);
}

void check_metric_name(std::string_view name, std::span<const EncoderIdentity> encoders,
                       std::span<const OfficialWeights> allowed) {
  const size_t bracket = name.find('[');
  const std::string_view bare = name.substr(0, bracket);
  if (name.find('@') != std::string_view::npos) return;  // says which encoder it is
  if (std::find(kEstablished.begin(), kEstablished.end(), squeeze(bare)) == kEstablished.end()) return;
  for (const OfficialWeights& w : allowed)
    for (const EncoderIdentity& e : encoders)
      if (w.sha256 == e.sha256 && w.official_name == bare) return;
  fail<ConfigError>(
      "'{}' may only be printed for the published network's weights; name the encoder instead, as in "
      "FD[judge@1a2b3c4d], KD[...], CLIPScore[...]",
      name);
}

}  // namespace fewstep::eval
