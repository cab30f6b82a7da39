#include "eval/cut_rate.h"

#include "eval/accuracy.h"
#include "src/base/error.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {

Tensor border_foreground(const Tensor& images, int64_t threshold) {
  FEW_CHECK(images.dim() == 4 && images.scalar_type() == at::kByte, "border_foreground: uint8 [B, C, H, W] is expected");
  const Tensor front = images.amax(1).gt(threshold);  // [B, H, W]
  return at::stack({front.select(2, 0).any(1), front.select(2, -1).any(1), front.select(1, 0).any(1), front.select(1, -1).any(1)}, 1);
}

namespace {

class CutRate : public Metric {
 public:
  void add(const EvalBatch& batch) override { sides_.push_back(border_foreground(batch.images)); }
  std::map<std::string, Value> result() const override {
    if (sides_.empty()) return {};
    const Tensor cut = at::cat(sides_);
    const int64_t n = cut.size(0);
    std::map<std::string, Value> values{{"cut_rate", share(cut.any(1).sum().item<int64_t>(), n)}};
    constexpr std::string_view kSides[] = {"left", "right", "top", "bottom"};
    for (int64_t s = 0; s < 4; ++s)
      values[fmt::format("cut_rate[{}]", kSides[s])] = share(cut.select(1, s).sum().item<int64_t>(), n);
    return values;
  }

 private:
  std::vector<Tensor> sides_;
};

}  // namespace

std::unique_ptr<Metric> make_cut_rate(const MetricContext&) { return std::make_unique<CutRate>(); }

}  // namespace fewstep::eval
