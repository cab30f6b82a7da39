#include "datasets/micro_conditioning.h"

#include <fmt/format.h>

#include "src/tensor/ops.h"

namespace fewstep {

std::array<int64_t, kMicroNumbers> micro_numbers(const MicroConditioning& m) {
  return {m.original_height, m.original_width, m.crop_top, m.crop_left, m.target_height, m.target_width};
}

MicroConditioning micro_of_numbers(const std::array<int64_t, kMicroNumbers>& n, bool flipped) {
  return {n[0], n[1], n[2], n[3], n[4], n[5], flipped};
}

MicroConditioning whole_image(int64_t height, int64_t width) { return {height, width, 0, 0, height, width, false}; }

Tensor micro_tensor(std::span<const MicroConditioning> rows) {
  Tensor out = at::empty({static_cast<int64_t>(rows.size()), kMicroNumbers}, at::kFloat);
  float* to = out.mutable_data_ptr<float>();
  for (const MicroConditioning& row : rows)
    for (int64_t number : micro_numbers(row)) *to++ = static_cast<float>(number);
  return out;
}

std::string micro_text(const MicroConditioning& m) {
  return fmt::format("original {}x{} crop ({}, {}) target {}x{}{}", m.original_height, m.original_width, m.crop_top,
                     m.crop_left, m.target_height, m.target_width, m.flipped ? " flipped" : "");
}

}  // namespace fewstep
