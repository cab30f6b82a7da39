#include "src/decoding/recorder.h"

#include "src/tensor/ops.h"

namespace fewstep::decoding {

Recorder::Recorder(int64_t batch, int64_t slots, const at::TensorOptions& options)
    : slots_(slots),
      rows_(at::arange(batch, options)),
      codes_(at::full({batch, slots + 1}, -1, options)),
      committed_at_(at::full({batch, slots + 1}, -1, options)),
      entropy_(at::zeros({batch, slots + 1}, options.dtype(at::kFloat))),
      tried_(at::zeros({kAges}, options)),
      kept_(at::zeros({kAges}, options)) {}

Tensor Recorder::flat(const Tensor& place) const { return (place + rows_.unsqueeze(1) * (slots_ + 1)).flatten(); }

void Recorder::add(int64_t pass, const Verdict& verdict, const Tensor& p, const Commit& commit, const Tensor& start,
                   const Tensor& age, int64_t most) {
  const Tensor slot = at::arange(most, start.options());
  const Tensor place = at::where(slot < commit.count.unsqueeze(1), start.unsqueeze(1) + slot, slots_);
  add(pass, place, verdict.y.narrow(1, 0, most), p.narrow(1, 0, most));
  const int64_t drafts = std::min(most, age.size(1));  // those looked at are among the committed ones
  if (drafts == 0) return;
  const Tensor open = at::minimum(commit.stop, slots_ - 1 - start).unsqueeze(1);  // the last slot that was looked at
  const Tensor tried = slot.narrow(0, 0, drafts).le(open);
  waiting_.ages.push_back(age.narrow(1, 0, drafts).clamp_max(kAges - 1).flatten());
  waiting_.tried.push_back(tried.flatten());
  waiting_.kept.push_back(tried.logical_and(verdict.kept.narrow(1, 0, drafts)).flatten());
}

void Recorder::add(int64_t pass, const Tensor& slot, const Tensor& code, const Tensor& p) {
  if (waiting_.places.size() >= kFlush) flush();
  waiting_.places.push_back(flat(slot));
  waiting_.codes.push_back(code.flatten());
  waiting_.entropies.push_back(entropy(p).flatten());
  waiting_.passes.insert(waiting_.passes.end(), static_cast<size_t>(slot.numel()), pass);
  passes_ = pass + 1;
}

void Recorder::flush() {
  if (!waiting_.places.empty()) {
    const Tensor places = at::cat(waiting_.places);
    codes_.view(-1).index_copy_(0, places, at::cat(waiting_.codes));
    committed_at_.view(-1).index_copy_(0, places, at::tensor(waiting_.passes, at::kLong).to(places.device()));
    entropy_.view(-1).index_copy_(0, places, at::cat(waiting_.entropies).to(at::kFloat));
  }
  if (!waiting_.ages.empty()) {
    const Tensor ages = at::cat(waiting_.ages);
    tried_.scatter_add_(0, ages, at::cat(waiting_.tried).to(at::kLong));
    kept_.scatter_add_(0, ages, at::cat(waiting_.kept).to(at::kLong));
  }
  waiting_ = {};
}

void Recorder::show(const PassObserver& observe, int64_t pass, const Window& window, const Tensor& start) {
  flush();
  Tensor codes = codes_.clone(), levels = at::zeros_like(codes);
  const Tensor place = flat((start.unsqueeze(1) + at::arange(window.draft.size(1), start.options())).clamp_max(slots_));
  codes.view(-1).index_copy_(0, place, window.draft.flatten());
  levels.view(-1).index_copy_(0, place, window.level.flatten());
  observe(pass, codes.narrow(1, 0, slots_), levels.narrow(1, 0, slots_));
}

void Recorder::keep(const Tensor& rows) { rows_ = rows_.index_select(0, rows); }

Decoded Recorder::finish(double forward_seconds) {
  flush();
  const auto host = [&](const Tensor& t) { return t.narrow(1, 0, slots_).to(at::kCPU).contiguous(); };
  Decoded out;
  out.codes = host(codes_), out.committed_at = host(committed_at_), out.entropy = host(entropy_);
  out.passes = std::get<0>(out.committed_at.max(1)) + 1;
  out.tried_by_age = tried_.to(at::kCPU), out.kept_by_age = kept_.to(at::kCPU);
  out.batch_passes = passes_;
  out.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  out.forward_seconds = forward_seconds;
  return out;
}

}  // namespace fewstep::decoding
