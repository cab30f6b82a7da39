#include "src/tensor/shape.h"

#include <ATen/autocast_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

TEST(Shape, DimsDestructuresAndChecks) {
  const auto [B, C, H] = dims<3>(at::zeros({2, 3, 5}));
  EXPECT_EQ(B * 100 + C * 10 + H, 235);
  EXPECT_THAT([] { dims<4>(at::zeros({2, 3, 5})); }, ThrowsMessage<Error>(HasSubstr("4 dimensions, got [2, 3, 5]")));
  EXPECT_THAT([] { dims<2>(Tensor()); }, ThrowsMessage<Error>(HasSubstr("undefined")));
}

TEST(Shape, ExpectShapeNamesBothShapes) {
  EXPECT_NO_THROW(expect_shape(at::zeros({8, 7, 64}), {8, -1, 64}, "tokens"));
  EXPECT_THAT([] { expect_shape(at::zeros({8, 12, 32}), {8, -1, 64}, "tokens"); },
              ThrowsMessage<Error>(HasSubstr("tokens: expected [8, -1, 64], got [8, 12, 32]")));
  EXPECT_THROW(expect_shape(at::zeros({8, 12}), {8, -1, 64}, "tokens"), Error);
}

TEST(Shape, HeadsSplitAndMerge) {
  const Tensor x = at::arange(2 * 3 * 8).view({2, 3, 8});
  const Tensor y = split_heads(x, 4);  // b l (h d) -> b h l d
  EXPECT_EQ(y.sizes(), at::IntArrayRef({2, 4, 3, 2}));
  EXPECT_EQ(y[1][2][0][1].item<int64_t>(), x[1][0][2 * 2 + 1].item<int64_t>());
  EXPECT_TRUE(at::equal(merge_heads(y), x));
  EXPECT_THROW(split_heads(x, 3), Error);
}

TEST(Shape, PatchesAreChannelMajorAndInvertible) {
  const Tensor x = at::arange(2 * 3 * 4 * 6).view({2, 3, 4, 6});
  const Tensor y = patchify(x, 2);  // b c (h p) (w q) -> b (h w) (c p q)
  EXPECT_EQ(y.sizes(), at::IntArrayRef({2, 6, 12}));
  // Patch (row 1, column 2), channel 2, inside (1, 0).
  EXPECT_EQ(y[1][1 * 3 + 2][2 * 4 + 1 * 2 + 0].item<int64_t>(), x[1][2][2 * 1 + 1][2 * 2 + 0].item<int64_t>());
  EXPECT_TRUE(at::equal(unpatchify(y, 2, 4, 6), x));
  EXPECT_THROW(patchify(x, 4), Error);
  EXPECT_THROW(unpatchify(y, 2, 4, 4), Error);
}

TEST(Shape, AppendDims) {
  EXPECT_EQ(append_dims(at::zeros({3}), 4).sizes(), at::IntArrayRef({3, 1, 1, 1}));
  EXPECT_THROW(append_dims(at::zeros({3, 2}), 1), Error);
}

TEST(Modes, AutocastIsAScope) {
  const Tensor a = at::ones({4, 4});
  {
    const Autocast scope(at::kCPU, at::kBFloat16);
    EXPECT_EQ(at::mm(a, a).scalar_type(), at::kBFloat16);
    {
      const Autocast off(at::kCPU, at::kBFloat16, false);
      EXPECT_EQ(at::mm(a, a).scalar_type(), at::kFloat);
    }
    EXPECT_EQ(at::mm(a, a).scalar_type(), at::kBFloat16);
  }
  EXPECT_EQ(at::mm(a, a).scalar_type(), at::kFloat);
}

TEST(Modes, DeterministicIsAScope) {
  const bool before = at::globalContext().deterministicAlgorithms();
  {
    const Deterministic scope;
    EXPECT_TRUE(at::globalContext().deterministicAlgorithms());
    EXPECT_FALSE(at::globalContext().deterministicFillUninitializedMemory());
  }
  EXPECT_EQ(at::globalContext().deterministicAlgorithms(), before);
}

}  // namespace
}  // namespace fewstep
