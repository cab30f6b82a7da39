#include "eval/draft_stability.h"

#include <algorithm>
#include <cmath>

#include "src/base/error.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::eval {

void DraftStability::add(const std::vector<Tensor>& codes, const Tensor& committed_at, int64_t window) {
  if (codes.empty()) return;
  const auto [B, N] = dims<2>(committed_at);
  const auto passes = static_cast<int64_t>(codes.size());
  const Tensor history = at::stack(codes).to(at::kCPU, at::kLong).contiguous();  // [passes, B, N]
  const Tensor decided = committed_at.to(at::kCPU, at::kLong).contiguous();
  const int64_t *code = history.const_data_ptr<int64_t>(), *last = decided.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < B; ++b) {
    Image image{std::vector<int64_t>(kAges, 0), std::vector<int64_t>(kAges, 0)};
    for (int64_t i = 0; i < N; ++i) {
      int64_t age = -1;
      for (int64_t p = 0; p < std::min(passes - 1, last[b * N + i]);
           ++p) {  // from the state after pass p to that after p + 1
        const int64_t now = code[(p * B + b) * N + i], next = code[((p + 1) * B + b) * N + i];
        if (now < 0) continue;
        age = age < 0 ? (p == 0 && i < window ? 1 : 0) : age + 1;
        const auto a = static_cast<size_t>(std::min(age, kAges - 1));
        ++image.drafts[a], image.kept[a] += now == next;
      }
    }
    images_.push_back(std::move(image));
  }
}

std::map<std::string, Value> DraftStability::result() const {
  std::map<std::string, Value> values;
  // Of the ages in [from, to).
  const auto share_of = [&](int64_t from, int64_t to) {
    std::vector<std::pair<double, double>> parts;  // kept, drafts of each image
    double kept = 0, drafts = 0, squares = 0;
    for (const Image& image : images_) {
      double k = 0, d = 0;
      for (auto a = static_cast<size_t>(from); a < static_cast<size_t>(to); ++a)
        k += static_cast<double>(image.kept[a]), d += static_cast<double>(image.drafts[a]);
      parts.emplace_back(k, d), kept += k, drafts += d;
    }
    if (drafts == 0) return Value{};
    for (const auto& [k, d] : parts) squares += (k - kept / drafts * d) * (k - kept / drafts * d);
    return Value{.value = kept / drafts, .ci95 = 1.96 * std::sqrt(squares) / drafts, .n = static_cast<int64_t>(drafts)};
  };
  constexpr int64_t kFewest = 50;  // drafts of an age that are worth a number
  if (Value all = share_of(0, kAges); all.n > 0) values["draft_stability"] = all;
  for (int64_t age = 0; age < kAges - 1; age = age == 0 ? 1 : 2 * age)
    if (Value v = share_of(age, age + 1); v.n >= kFewest) values[fmt::format("draft_stability[age={}]", age)] = v;
  return values;
}

}  // namespace fewstep::eval
