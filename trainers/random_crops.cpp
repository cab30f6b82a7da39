#include "trainers/random_crops.h"

#include "src/base/error.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "src/tensor/shape.h"

namespace fewstep {

Tensor random_crops(const Tensor& images, const Tensor& ids, int64_t side, uint64_t seed, int64_t step) {
  const auto [B, C, H, W] = dims<4>(images);
  if (side < 1 || side > H || side > W) fail<ConfigError>("trainer.crop: {} pixels from images of {} x {}", side, H, W);
  // Columns 1 and 2 of a row: the first one says which images are mirrored.
  const Tensor u = uniform_by_id(ids.to(at::kCPU), 3, seed, Stream::mix, step).to(at::kDouble).contiguous();
  const auto place = [&](int64_t row, int64_t column, int64_t free) {
    return std::min(free, static_cast<int64_t>(u.const_data_ptr<double>()[row * 3 + column] * static_cast<double>(free + 1)));
  };
  std::vector<Tensor> crops;
  for (int64_t i = 0; i < B; ++i)
    crops.push_back(images[i].narrow(1, place(i, 1, H - side), side).narrow(2, place(i, 2, W - side), side));
  return at::stack(crops);
}

}  // namespace fewstep
