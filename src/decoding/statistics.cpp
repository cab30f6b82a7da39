#include "src/decoding/statistics.h"

#include <nlohmann/json.hpp>
#include <numeric>

#include "src/tensor/ops.h"

namespace fewstep::decoding {

Tensor foreground_slots(const Tensor& images, int64_t rows, int64_t columns, int64_t tolerance) {
  const Tensor x = images.to(at::kShort);
  const int64_t B = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3);
  const Tensor border = at::cat({x.select(2, 0), x.select(2, H - 1), x.select(3, 0), x.select(3, W - 1)}, 2);  // [B, C, 2 (H + W)]
  const Tensor background = std::get<0>(border.median(2)).view({B, C, 1, 1});
  const Tensor differs = (x - background).abs().gt(tolerance).any(1);                                           // [B, H, W]
  return differs.view({B, rows, H / rows, columns, W / columns}).any(4).any(2).flatten(1);
}

void DecodingStatistics::add(const Decoded& decoded, const Tensor& forced, const Tensor& foreground) {
  const int64_t B = decoded.codes.size(0), N = decoded.codes.size(1);
  const Tensor at_pass = decoded.committed_at.contiguous(), entropy = decoded.entropy.to(at::kDouble).contiguous();
  const Tensor structural = forced.to(at::kCPU).ge(0).contiguous();
  const Tensor front = foreground.defined() ? foreground.to(at::kCPU).contiguous() : Tensor();
  const bool* is_structural = structural.const_data_ptr<bool>();
  const auto structural_count = structural.sum().item<double>();
  for (int64_t b = 0; b < B; ++b) {
    const int64_t* when = at_pass.const_data_ptr<int64_t>() + b * N;
    const double* bits = entropy.const_data_ptr<double>() + b * N;
    std::vector<int64_t> committed(static_cast<size_t>(*std::max_element(when, when + N) + 1), 0);
    for (int64_t i = 0; i < N; ++i) ++committed[static_cast<size_t>(when[i])];
    for (int64_t m : committed) {
      if (static_cast<size_t>(m) >= lengths_.size()) lengths_.resize(static_cast<size_t>(m) + 1, 0);
      ++lengths_[static_cast<size_t>(m)];
    }
    for (int64_t i = 0; i < N; ++i) {
      const double cost = 1.0 / static_cast<double>(committed[static_cast<size_t>(when[i])]);
      if (!is_structural[i]) entropies_.push_back(bits[i]), costs_.push_back(cost);
      if (front.defined() && front.const_data_ptr<bool>()[b * N + i]) foreground_tokens_ += 1, foreground_cost_ += cost;
    }
    const auto passes = static_cast<double>(committed.size()), ratio = static_cast<double>(N) / passes;
    passes_ += passes, ratios_ += ratio, ratios_squared_ += ratio * ratio;
    ratios_free_ += (static_cast<double>(N) - structural_count) / passes;
  }
  images_ += B, tokens_ += static_cast<double>(B * N), structural_ += structural_count * static_cast<double>(B);
  seconds_ += decoded.seconds, forward_seconds_ += decoded.forward_seconds, batch_passes_ += static_cast<double>(decoded.batch_passes);
  for (auto [total, part] : {std::pair{&tried_, &decoded.tried_by_age}, std::pair{&kept_, &decoded.kept_by_age}}) {
    total->resize(static_cast<size_t>(part->size(0)), 0);
    for (int64_t a = 0; a < part->size(0); ++a) (*total)[static_cast<size_t>(a)] += part->const_data_ptr<int64_t>()[a];
  }
}

double DecodingStatistics::passes() const { return passes_ / static_cast<double>(images_); }
double DecodingStatistics::compression() const { return ratios_ / static_cast<double>(images_); }
double DecodingStatistics::compression_of_means() const { return tokens_ / passes_; }
double DecodingStatistics::compression_without_structural() const { return ratios_free_ / static_cast<double>(images_); }
double DecodingStatistics::foreground_compression() const {
  return foreground_cost_ > 0 ? foreground_tokens_ / foreground_cost_ : std::numeric_limits<double>::quiet_NaN();
}
double DecodingStatistics::seconds_per_pass() const { return seconds_ / batch_passes_; }
double DecodingStatistics::tokens_per_second() const { return tokens_ / seconds_; }
double DecodingStatistics::overhead() const { return 1 - forward_seconds_ / seconds_; }

double DecodingStatistics::compression_interval() const {
  const auto n = static_cast<double>(images_);
  if (images_ < 2) return 0;
  const double mean = ratios_ / n, variance = std::max(0.0, (ratios_squared_ - n * mean * mean) / (n - 1));
  return 1.96 * std::sqrt(variance / n);
}

std::vector<DecodingStatistics::EntropyBin> DecodingStatistics::by_entropy(int64_t bins) const {
  std::vector<size_t> order(entropies_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return entropies_[a] < entropies_[b]; });
  std::vector<EntropyBin> out;
  for (int64_t k = 0; k < bins; ++k) {
    const size_t begin = order.size() * static_cast<size_t>(k) / static_cast<size_t>(bins);
    const size_t end = order.size() * static_cast<size_t>(k + 1) / static_cast<size_t>(bins);
    if (begin == end) continue;
    double cost = 0;
    for (size_t i = begin; i < end; ++i) cost += costs_[order[i]];
    out.push_back({entropies_[order[begin]], entropies_[order[end - 1]], static_cast<double>(end - begin) / cost, static_cast<int64_t>(end - begin)});
  }
  return out;
}

std::vector<int64_t> DecodingStatistics::accepted_lengths() const { return lengths_; }

std::vector<std::pair<int64_t, double>> DecodingStatistics::acceptance_by_age() const {
  std::vector<std::pair<int64_t, double>> out;
  size_t last = tried_.size();
  while (last > 0 && tried_[last - 1] == 0) --last;
  for (size_t a = 0; a < last; ++a)
    out.emplace_back(tried_[a], tried_[a] == 0 ? 0.0 : static_cast<double>(kept_[a]) / static_cast<double>(tried_[a]));
  return out;
}

Json DecodingStatistics::to_json() const {
  Json entropy = Json::array(), ages = Json::array();
  for (const EntropyBin& b : by_entropy())
    entropy.push_back({{"from", b.low}, {"to", b.high}, {"tokens", b.tokens}, {"step_compression", b.compression}});
  int64_t age = 0;
  for (const auto& [tried, share] : acceptance_by_age()) ages.push_back({{"age", age++}, {"drafts", tried}, {"accepted", share}});
  Json out = {{"images", images_},
              {"passes", passes()},
              {"step_compression", compression()},
              {"step_compression_ci95", compression_interval()},
              {"step_compression_ratio_of_means", compression_of_means()},
              {"step_compression_without_structural", compression_without_structural()},
              {"seconds_per_pass", seconds_per_pass()},
              {"tokens_per_second", tokens_per_second()},
              {"overhead_outside_transformer", overhead()},
              {"accepted_lengths", accepted_lengths()},
              {"acceptance_by_age", ages},
              {"by_entropy", entropy}};
  if (foreground_cost_ > 0) out["step_compression_foreground"] = foreground_compression();
  return out;
}

}  // namespace fewstep::decoding
