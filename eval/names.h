// Honest metric names: what a number may be called depends on the weights it was computed with.
#pragma once
#include <span>
#include <string>
#include <string_view>

namespace fewstep::eval {

struct EncoderIdentity {
  std::string name;    // "judge"
  std::string sha256;  // of the weight file
  std::string source_sha256 = {};  // of the download it was converted from; empty: unknown
  std::string pipeline = {};       // how images are prepared, where there are several ways: part of every number's name
};

// Weights whose SHA-256 earns the established name of a metric ("FID" needs the Inception of 2015-12-05).
struct OfficialWeights {
  // Hash of the weights, or at least 8 digits of the original download's: {"6726825d", "FD", "FID"}.
  std::string_view sha256, metric, official_name;
};
std::span<const OfficialWeights> official_weights();

// "FD[judge@1a2b3c4d]"; "FID" only when `allowed` lists the weights for that metric. `detail` is appended inside the
// brackets: metric_name("recall", e, "k=3") is "recall[judge@1a2b3c4d,k=3]". "FD" of a spatial map is called "sFD".
std::string metric_name(std::string_view metric, const EncoderIdentity& encoder, std::string_view detail = {},
                        std::span<const OfficialWeights> allowed = official_weights());
// Throws ConfigError when `name` is an established one ("FID", "CLIP-Score", ...) that names no encoder, and none of
// the encoders in use earns it, or one of ours that only means something together with its encoder ("FD", "recall"):
// the gate results.json, and with it every table, passes.
void check_metric_name(std::string_view name, std::span<const EncoderIdentity> encoders,
                       std::span<const OfficialWeights> allowed = official_weights());

// Of what a model's decoder did or drew (step_compression, passes, token_nll, ...), not of how images look: measured
// for the set `samples` only, and shown apart from the image sets.
bool is_generator_metric(std::string_view name);

}  // namespace fewstep::eval
