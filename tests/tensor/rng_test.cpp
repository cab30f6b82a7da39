#include "src/tensor/rng.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <set>

#include "src/base/error.h"
#include "src/base/philox.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace {

using Words = std::array<uint32_t, 4>;

// Random123's kat_vectors, philox4x32 with 10 rounds.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Rng, KeysDifferInEveryArgument) {
  std::set<uint64_t> keys;
  for (uint64_t seed : {0, 1})
    for (Stream stream : {Stream::data, Stream::noise})
      for (int64_t step : {0, 1, 7})
        for (int64_t id : {0, 1, 7, -1}) keys.insert(stream_key(seed, stream, step, id));
  EXPECT_EQ(keys.size(), 2u * 2 * 3 * 4);
}

TEST(Rng, GeneratorsRepeatAndDiffer) {
  const auto draw = [](int64_t id) {
    at::Generator g = generator_for(3, Stream::sampling, 5, id);
    return at::empty({1000}, at::kDouble).uniform_(0, 1, g);
  };
  EXPECT_TRUE(at::equal(draw(1), draw(1)));
  EXPECT_FALSE(at::equal(draw(1), draw(2)));
  EXPECT_NEAR(draw(1).mean().item<double>(), 0.5, 0.04);
}

// The draw of an id must not depend on who else is in the batch, nor on threads.
TEST(Rng, RowsDependOnTheirIdAlone) {
  const Tensor ids = at::arange(100, 137);
  const Tensor u = uniform_by_id(ids, 7, 1, Stream::noise, 4), n = normal_by_id(ids, {3, 3}, 1, Stream::noise, 4);
  EXPECT_EQ(n.sizes(), at::IntArrayRef({37, 3, 3}));
  const Tensor order = at::randperm(37);
  EXPECT_TRUE(at::equal(uniform_by_id(ids.index_select(0, order), 7, 1, Stream::noise, 4), u.index_select(0, order)));
  EXPECT_TRUE(at::equal(normal_by_id(ids.slice(0, 10, 13), {3, 3}, 1, Stream::noise, 4), n.slice(0, 10, 13)));
  // Fewer columns are the first columns: a shorter sequence keeps its draws.
  EXPECT_TRUE(at::equal(uniform_by_id(ids, 5, 1, Stream::noise, 4), u.slice(1, 0, 5)));
  for (int64_t first = 0; first < 4; ++first)  // a piece of a row is what the row holds there
    EXPECT_TRUE(at::equal(uniform_by_id(ids, at::full_like(ids, first), 3, 1, Stream::noise, 4), u.slice(1, first, first + 3)));
  EXPECT_FALSE(at::equal(uniform_by_id(ids, 7, 1, Stream::noise, 5), u));
  EXPECT_EQ(normal_by_id(at::empty({0}, at::kLong), {3}, 1, Stream::noise, 0).size(0), 0);

  const Tensor many = at::arange(64);
  const int threads = at::get_num_threads();
  const Tensor wide = normal_by_id(many, {4096}, 1, Stream::noise, 0);
  at::set_num_threads(1);
  EXPECT_TRUE(at::equal(normal_by_id(many, {4096}, 1, Stream::noise, 0), wide));
  at::set_num_threads(threads);
}

TEST(Rng, Distributions) {
  const Tensor ids = at::arange(200);
  const Tensor u = uniform_by_id(ids, 1000, 9, Stream::mix, 0).to(at::kDouble);
  EXPECT_GE(u.min().item<double>(), 0.0);
  EXPECT_LT(u.max().item<double>(), 1.0);
  EXPECT_NEAR(u.mean().item<double>(), 0.5, 0.003);
  EXPECT_NEAR(u.var().item<double>(), 1.0 / 12, 0.002);
  const Tensor n = normal_by_id(ids, {1000}, 9, Stream::mix, 0).to(at::kDouble);
  EXPECT_NEAR(n.mean().item<double>(), 0.0, 0.01);
  EXPECT_NEAR(n.var().item<double>(), 1.0, 0.02);
  EXPECT_NEAR(n.pow(4).mean().item<double>(), 3.0, 0.1);
  // Neighbours of one block (cosine and sine of one angle) are uncorrelated.
  const Tensor pairs = n.view({-1, 2});
  EXPECT_NEAR((pairs.select(1, 0) * pairs.select(1, 1)).mean().item<double>(), 0.0, 0.01);
}

TEST(Rng, IdsMustBeInt64) {
  EXPECT_THROW(uniform_by_id(at::zeros({3}), 2, 0, Stream::noise, 0), Error);
  EXPECT_THROW(uniform_by_id(at::zeros({3, 1}, at::kLong), 2, 0, Stream::noise, 0), Error);
}

}  // namespace
}  // namespace fewstep
