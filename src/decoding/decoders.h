// Decoders of autoregressive image models, all over the same model interface and all with counter-based randomness: image i
// of seed s comes out the same whatever stands beside it in the batch (up to the rounding of products; bit for bit with
// `deterministic`).
//
//   ar        one token a pass
//   jacobi    a window of drafts; a draft stays when the pass draws the same token again         (Song et al. 2021; SJD, sec. 3)
//   sjd       speculative Jacobi decoding: drafts are accepted by min(1, p / q), else resampled   (arXiv 2410.01699)
//   sjd2      speculative Jacobi-denoising decoding: drafts enter as noise and are denoised       (arXiv 2510.08994)
//   zipar     rows of the grid in parallel; lossy                                                 (arXiv 2412.04062)
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "src/config/visitor.h"
#include "src/decoding/image_model.h"
#include "src/decoding/law.h"
#include "src/models/embedding_noise.h"
#include "src/tensor/tensor.h"

namespace fewstep::decoding {

enum class DecoderKind { ar, jacobi, sjd, sjd2, zipar };
// How slots that are not committed are drawn again from pass to pass. none: afresh. maximal: the draft stays with the largest
// possible probability (accept or residual). gumbel: argmax of log p + g with noise g fixed per slot; ar takes it as well.
enum class Coupling { none, maximal, gumbel };
enum class Refill { one_hot, uniform, left };      // sjd: what a new slot's draft is, and the law it is credited with
enum class Sjd2Mode { gated, published };          // gated: exact; published: the paper's rule, verifies across noisy slots
enum class NoisyKv { refeed, keep };               // published: keys of tokens that were committed while noisy
enum class DenoiseWith { sampled, expected };      // embedding that stands for the clean token in the denoising step

struct DecoderOptions {
  DecoderKind kind = DecoderKind::ar;
  SamplingOptions sampling = {};
  int64_t window = 32;          // drafts a pass verifies
  int64_t steps = 4;            // sjd2: noise levels K
  Sjd2Mode mode = Sjd2Mode::gated;
  Coupling coupling = Coupling::none;
  Refill refill = Refill::uniform;
  bool refine = true;           // sjd2: clean slots are drawn again each pass; off: they wait for their verification
  NoisyKv noisy_kv = NoisyKv::refeed;
  DenoiseWith denoise_with = DenoiseWith::sampled;
  int64_t relaxed_neighbours = 0;  // sjd: LANTERN's relaxed acceptance (arXiv 2410.03355), lossy; 0: off
  double relaxed_delta = 0.1;      // most probability the neighbours may add
  bool deterministic = false;
};
void describe(config::Visitor& v, DecoderOptions& c);  // the keys above without `sampling`
// ConfigError for what cannot work with an image of `length` tokens: window too long, no step.
void check(const DecoderOptions& options, int64_t length);
bool lossy(const DecoderOptions& options);             // another law than the model's autoregressive one
std::string_view name_of(DecoderKind kind);

// What a run of a decoder leaves beside the codes. [B, N] tensors are in slot order.
struct Decoded {
  Tensor codes;                       // int64 [B, N]
  Tensor passes;                      // int64 [B]: forward passes of each image, the prompt's included
  Tensor committed_at;                // int64 [B, N]: the pass (0-based) that committed the slot
  Tensor entropy;                     // float [B, N]: of the law the slot was committed under; 0 for structural slots
  Tensor tried_by_age, kept_by_age;   // int64 [A]: drafts verified and accepted after so many passes in the window
  int64_t batch_passes = 0;           // forward passes of the whole batch: the slowest row's
  double seconds = 0, forward_seconds = 0;  // all passes; inside the transformer
};

// Called after every pass with what every slot holds now, for pictures: drafts int64 [B, N] (committed ones included, -1: no
// draft yet), levels int64 [B, N].
using PassObserver = std::function<void(int64_t pass, const Tensor& codes, const Tensor& levels)>;

// prompts int64 [B, P]; ids int64 [B] (CPU): the samples' numbers, keys of their randomness. `noise` is required by sjd2. NumericError
// when a law is not finite.
Decoded decode(const ImageModel& model, const Tensor& prompts, const Tensor& ids, uint64_t seed, const DecoderOptions& options,
               const models::EmbeddingNoise* noise = nullptr, const PassObserver& observe = {});

// The functions behind it.
Decoded decode_autoregressive(const ImageModel& model, const Tensor& prompts, const Tensor& ids, uint64_t seed, const DecoderOptions& options);
Decoded decode_window(const ImageModel& model, const Tensor& prompts, const Tensor& ids, uint64_t seed, const DecoderOptions& options,
                      const models::EmbeddingNoise* noise, const PassObserver& observe);
Decoded decode_row_parallel(const ImageModel& model, const Tensor& prompts, const Tensor& ids, uint64_t seed, const DecoderOptions& options);

// Mean negative log-likelihood and support of given codes under the model's autoregressive law (guidance and temperature of
// `sampling`; top-k and top-p only mark what they would have excluded). One parallel pass.
struct Likelihood {
  Tensor nll;      // float64 [B, N]; 0 for structural slots
  Tensor outside;  // bool [B, N]: excluded by top-k or top-p
};
Likelihood likelihood(const ImageModel& model, const Tensor& prompts, const Tensor& codes, const SamplingOptions& sampling);

}  // namespace fewstep::decoding
