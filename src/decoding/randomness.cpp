#include "src/decoding/randomness.h"

#include "src/decoding/law.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep::decoding {
namespace {
// Uses that do not depend on the pass have numbers below those of passes, which begin at kFirstPass.
constexpr int64_t kAutoregressive = 0, kFirstDraft = 1, kGumbel = 2, kNormal = 3, kFirstPass = 16;
}  // namespace

DecoderRandomness::DecoderRandomness(const Tensor& ids, uint64_t seed, int64_t slots, const at::TensorOptions& options)
    : ids_(ids), seed_(seed), slots_(slots), options_(at::TensorOptions().device(options.device())) {}

Tensor DecoderRandomness::uniform(int64_t columns, int64_t use) const {
  return uniform_by_id(ids_, columns, seed_, Stream::sampling, use).to(options_.device());
}

Tensor DecoderRandomness::autoregressive() const { return uniform(slots_, kAutoregressive); }
Tensor DecoderRandomness::first_draft() const { return uniform(slots_, kFirstDraft); }
Tensor DecoderRandomness::of_pass(int64_t pass) const { return uniform(2 * slots_ + 2, kFirstPass + pass); }

Tensor DecoderRandomness::gumbel(const std::vector<int64_t>& first, int64_t count, int64_t codes) const {
  const Tensor column = at::tensor(first, at::kLong) * codes;
  const Tensor u = uniform_by_id(ids_, column, count * codes, seed_, Stream::sampling, kGumbel);
  return exp_gumbel(u.to(options_.device())).view({ids_.size(0), count, codes});
}

Tensor DecoderRandomness::gumbel(int64_t first, int64_t count, int64_t codes) const {
  return gumbel(std::vector<int64_t>(static_cast<size_t>(rows()), first), count, codes);
}

Tensor DecoderRandomness::normal(int64_t dims) const {
  return normal_by_id(ids_, {slots_, dims}, seed_, Stream::sampling, kNormal).to(options_.device());
}

void DecoderRandomness::keep(const Tensor& rows) { ids_ = ids_.index_select(0, rows); }

}  // namespace fewstep::decoding
