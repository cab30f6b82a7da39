#include "src/dist/data_parallel.h"

#include <numeric>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include "src/base/error.h"
#include "src/dist/group_world.h"
#include "src/tensor/ops.h"

namespace fewstep::dist {
namespace {

// DDP's sizes: a small first bucket starts communication early in backward.
constexpr size_t kFirstBucketBytes = 1 << 20, kBucketBytes = 25 << 20;

std::vector<Tensor> trainable(const NamedTensors& parameters) {
  std::vector<Tensor> tensors;
  for (const auto& [name, tensor] : parameters)
    if (tensor.requires_grad()) tensors.push_back(tensor);
  return tensors;
}

// A number that differs when any rank builds another parameter list: then the buckets would not match and hang.
int64_t signature(const NamedTensors& parameters) {
  size_t hash = parameters.size();
  const auto mix = [&](size_t value) { hash = (hash ^ value) * 0x9E3779B97F4A7C15ull + (hash >> 7); };
  for (const auto& [name, tensor] : parameters) {
    mix(std::hash<std::string>{}(name));
    mix(static_cast<size_t>(tensor.scalar_type()) * 2 + tensor.requires_grad());
    for (const int64_t size : tensor.sizes()) mix(static_cast<size_t>(size));
  }
  return static_cast<int64_t>(hash >> 1);
}

void check_same_on_all_ranks(World& world, const NamedTensors& parameters) {
  const Tensor mine = at::full({1}, signature(parameters), at::kLong);
  const auto all = world.all_gather(mine);
  for (size_t r = 0; r < all.size(); ++r)
    if (all[r].item<int64_t>() != all[0].item<int64_t>())
      fail<DistributedError>(
          "rank {} has other parameters (names, shapes or types) than rank 0: do all ranks read the "
          "same config and the same binary?",
          r);
}

// Reducer's constructor grew: 11 parameters up to torch 2.10 or so, 12 and more later.
template <class Reducer = c10d::Reducer>
std::unique_ptr<Reducer> make_reducer(const std::vector<Tensor>& parameters,
                                      const c10::intrusive_ptr<c10d::ProcessGroup>& group) {
  const std::vector<bool> dense(parameters.size(), false);
  auto [buckets, limits] =
      c10d::compute_bucket_assignment_by_size(parameters, {kFirstBucketBytes, kBucketBytes}, dense);
  std::reverse(buckets.begin(), buckets.end());  // gradients come in about the reverse order of the parameters
  const auto bucket_bytes = static_cast<int64_t>(kBucketBytes), first_bytes = static_cast<int64_t>(kFirstBucketBytes);
  constexpr bool find_unused = false, as_bucket_view = false, skip_unused = false, python = false;
  using Names = std::unordered_map<size_t, std::string>;
  if constexpr (std::is_constructible_v<Reducer, std::vector<Tensor>, std::vector<std::vector<size_t>>,
                                        c10::intrusive_ptr<c10d::ProcessGroup>, std::vector<bool>, int64_t, bool, bool,
                                        Names, int64_t, bool, bool, std::vector<int64_t>>)
    return std::make_unique<Reducer>(parameters, std::move(buckets), group, dense, bucket_bytes, find_unused,
                                     as_bucket_view, Names{}, first_bytes, skip_unused, python, std::vector<int64_t>{});
  else
    return std::make_unique<Reducer>(parameters, std::move(buckets), group, dense, bucket_bytes, find_unused,
                                     as_bucket_view, Names{}, first_bytes, skip_unused, python);
}

}  // namespace

struct DataParallel::Impl {
  GroupWorld* world = nullptr;  // null: one process
  std::unique_ptr<c10d::Reducer> reducer;
};

DataParallel::DataParallel(World& world, const NamedTensors& parameters) : impl_(std::make_unique<Impl>()) {
  if (world.size() == 1) return;
  impl_->world = dynamic_cast<GroupWorld*>(&world);
  FEW_CHECK(impl_->world, "a world of {} ranks without a process group", world.size());
  const auto tensors = trainable(parameters);
  FEW_CHECK(!tensors.empty(), "DataParallel: none of {} parameters requires a gradient", parameters.size());
  check_same_on_all_ranks(world, parameters);
  broadcast_parameters(world, parameters);
  impl_->reducer = make_reducer(tensors, impl_->world->group());
}

DataParallel::~DataParallel() = default;

void DataParallel::backward(const Tensor& loss, bool last) {
  if (!impl_->world) return loss.backward();
  // Without prepare_for_backward the Reducer's hooks do nothing: the gradient only accumulates.
  impl_->world->communicate_within("all_reduce of gradients", [&] {
    if (last) {
      impl_->reducer->rebuild_buckets();  // once, after the first step: in the order in which gradients came
      impl_->reducer->prepare_for_backward({});
    }
    loss.backward();
  });
}

void broadcast_parameters(World& world, const NamedTensors& tensors) {
  if (world.size() == 1 || tensors.empty()) return;
  auto* group_world = dynamic_cast<GroupWorld*>(&world);
  FEW_CHECK(group_world, "a world of {} ranks without a process group", world.size());
  const at::NoGradGuard no_grad;
  std::vector<Tensor> values;
  for (const auto& [name, tensor] : tensors)
    if (tensor.numel() > 0) values.push_back(tensor.detach());
  group_world->communicate("broadcast of parameters",
                           [&] { c10d::broadcast_coalesced(group_world->group(), values, kBucketBytes, /*rank=*/0); });
}

}  // namespace fewstep::dist
