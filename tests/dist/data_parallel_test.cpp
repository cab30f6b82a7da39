// DataParallel against one process that sees the whole batch: the same weights after 20 AdamW steps.
#include "src/dist/data_parallel.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <csignal>

#include "src/base/error.h"
#include "src/nn/layers.h"
#include "src/nn/recompute.h"
#include "src/tensor/ops.h"
#include "src/tensor/optim.h"
#include "tests/dist/ranks.h"
#include "tests/dist/scenarios.h"

namespace fewstep::dist {
namespace {

using ::testing::HasSubstr;
using testing::RankResult;
using testing::spawn;
using testing::with_world;

constexpr int64_t kWidth = 24, kSteps = 20, kBatch = 12;  // the batch splits over 1, 2, 3 ranks times 1, 2 micro-steps

struct Options {
  at::ScalarType type = at::kDouble;
  int64_t accumulation = 1;
  bool recompute = false;
};

// `shared` is used twice in a forward pass.
struct Net : nn::Module {
  nn::Linear in, shared, out;
  nn::LayerNorm norm;
  bool use_recompute = false;
  Net() : in(8, kWidth), shared(kWidth, kWidth), out(kWidth, 3), norm(kWidth) {
    child("in", in);
    child("shared", shared);
    child("out", out);
    child("norm", norm);
  }
  Tensor block(const Tensor& x) const { return x + at::silu(shared(norm(x))); }
  Tensor operator()(const Tensor& x) const {
    Tensor h = in(x);
    for (int i = 0; i < 2; ++i) {
      if (use_recompute)
        h = nn::recompute(*this, [this](const nn::Tensors& t) { return nn::Tensors{block(t[0])}; }, {h})[0];
      else
        h = block(h);
    }
    return out(h);
  }
};

std::unique_ptr<Net> make_net(uint64_t seed, const Options& o) {
  const nn::BuildScope scope(at::kCPU, o.type);
  auto net = std::make_unique<Net>();
  net->initialise(seed);
  return net;
}

struct Batch {
  Tensor x, y;
};
Batch batch_of(int64_t step, at::ScalarType type) {
  auto generator = at::detail::createCPUGenerator(static_cast<uint64_t>(1000 + step));
  return {at::randn({kBatch, 8}, generator, at::kDouble).to(type),
          at::randn({kBatch, 3}, generator, at::kDouble).to(type)};
}

OptimizerConfig settings() { return {.lr = 0.01, .weight_decay = 0.1, .clip_norm = 0.5}; }

// One optimiser step over rows [rank * n, (rank + 1) * n) of the batch, in micro-steps.
void train_step(const Net& net, AdamW& optimizer, DataParallel& parallel, const Batch& batch, const World& w,
                int64_t micro) {
  optimizer.zero_grad();
  const int64_t rows = kBatch / w.size() / micro;
  for (int64_t m = 0; m < micro; ++m) {
    const int64_t first = (w.rank() * micro + m) * rows;
    const Tensor error = net(batch.x.narrow(0, first, rows)) - batch.y.narrow(0, first, rows);
    const Tensor loss = error.square().sum() * static_cast<double>(w.size()) / static_cast<double>(kBatch);
    parallel.backward(loss, m + 1 == micro);
  }
  optimizer.step(settings().lr, optimizer.grad_norm());
}

double difference(const nn::Module& a, const nn::Module& b) {
  const NamedTensors pa = a.parameters(), pb = b.parameters();
  double squares = 0, norm = 0;
  for (size_t i = 0; i < pa.size(); ++i) {
    squares += (pa[i].tensor.detach() - pb[i].tensor.detach()).to(at::kDouble).square().sum().item<double>();
    norm += pb[i].tensor.detach().to(at::kDouble).square().sum().item<double>();
  }
  return std::sqrt(squares / norm);
}

void compare_with_one_process(World& w, const Options& o) {
  // Other initial values on every rank: the constructor must broadcast rank 0's.
  const auto net = make_net(static_cast<uint64_t>(7 + w.rank()), o), reference = make_net(7, o);
  net->use_recompute = o.recompute;
  AdamW optimizer(net->parameters(), settings()), reference_optimizer(reference->parameters(), settings());
  DataParallel parallel(w, optimizer.parameters());
  FEW_CHECK(difference(*net, *reference) == 0, "the initial weights are not rank 0's");
  const auto one = World::single();
  DataParallel alone(*one, reference_optimizer.parameters());
  for (int64_t step = 0; step < kSteps; ++step) {
    const Batch batch = batch_of(step, o.type);
    train_step(*net, optimizer, parallel, batch, w, o.accumulation);
    train_step(*reference, reference_optimizer, alone, batch, *one, 1);
  }
  const double d = difference(*net, *reference), limit = o.type == at::kDouble ? 1e-10 : 1e-5;
  const double moved = difference(*reference, *make_net(7, o));
  if (w.is_main())
    fmt::print(stderr, "{} ranks, accumulation {}, {}{}: |dw|/|w| = {:.2e} (weights moved by {:.2f})\n", w.size(),
               o.accumulation, c10::toString(o.type), o.recompute ? ", recompute" : "", d, moved);
  FEW_CHECK(d <= limit, "|dw|/|w| = {:.3e} after {} steps, limit {:.0e}", d, kSteps, limit);
  FEW_CHECK(moved > 0.05, "the weights moved by {} only: this compares nothing", moved);
  for (const auto& [name, p] : optimizer.parameters()) {  // gradients are still the optimiser's views
    FEW_CHECK(p.grad().defined(), "no gradient for {}", name);
    const Tensor before = p.grad().clone();
    optimizer.zero_grad();
    FEW_CHECK(p.grad().count_nonzero().item<int64_t>() == 0, "the gradient of {} left the flat buffer", name);
  }
}

int equals_one_process() {
  return with_world([](World& w) {
    for (const int64_t accumulation : {1, 2}) {
      compare_with_one_process(w, {.accumulation = accumulation});
      compare_with_one_process(w, {.type = at::kFloat, .accumulation = accumulation});
    }
  });
}

int equals_with_recompute() {
  return with_world([](World& w) {
    for (const int64_t accumulation : {1, 2})
      compare_with_one_process(w, {.accumulation = accumulation, .recompute = true});
  });
}

int other_parameters() {
  return with_world([](World& w) {
    const nn::Linear net(4, w.rank() == 1 ? 5 : 4);
    DataParallel parallel(w, net.parameters());
  });
}

int death_in_backward() {
  return with_world([](World& w) {
    const auto net = make_net(1, {});
    AdamW optimizer(net->parameters(), settings());
    DataParallel parallel(w, optimizer.parameters());
    for (int64_t step = 0; step < 50; ++step) {
      if (step == 3 && w.rank() == 1) kill(getpid(), SIGKILL);
      train_step(*net, optimizer, parallel, batch_of(step, at::kDouble), w, 1);
    }
  });
}

// What the model itself throws in backward is not the group's failure.
int error_in_backward() {
  return with_world([](World& w) {
    Tensor p = at::ones({4}).requires_grad_();
    DataParallel parallel(w, {{"p", p}});
    const Tensor y = p * 2;
    y.register_hook([](const Tensor&) -> Tensor { fail<NumericError>("gradient of layer 3 is not finite"); });
    parallel.backward(y.sum(), true);
  });
}

int broadcasts() {
  return with_world([](World& w) {
    const Tensor whole = at::full({6, 2}, w.rank()), empty = at::empty({0});
    NamedTensors tensors = {{"f", at::full({3}, w.rank(), at::kFloat)},
                            {"d", at::full({2, 2}, w.rank(), at::kDouble)},
                            {"i", at::full({}, w.rank(), at::kLong)},
                            {"view", whole.select(1, 1)},
                            {"none", empty}};
    tensors[0].tensor.requires_grad_();
    broadcast_parameters(w, tensors);
    for (const auto& [name, t] : tensors)
      FEW_CHECK(t.detach().count_nonzero().item<int64_t>() == 0, "{} was not set to rank 0's", name);
    FEW_CHECK(whole.sum().item<double>() == 6.0 * w.rank(), "broadcast wrote beside the view");
    broadcast_parameters(w, {});
  });
}

TEST(DataParallel, EqualsOneProcess) {
  for (const int size : {1, 2, 3})
    for (const RankResult& r : spawn("equals_one_process", {.size = size})) {
      EXPECT_EQ(r.exit_code, 0) << r.output;
      std::fputs(r.output.c_str(), stdout);
    }
}

TEST(DataParallel, EqualsOneProcessUnderRecompute) {
  for (const RankResult& r : spawn("equals_with_recompute")) {
    EXPECT_EQ(r.exit_code, 0) << r.output;
    std::fputs(r.output.c_str(), stdout);
  }
}

TEST(DataParallel, RefusesOtherParametersOnARank) {
  const auto ranks = spawn("other_parameters");
  EXPECT_EQ(ranks[0].exit_code, 5);
  EXPECT_THAT(ranks[0].output, HasSubstr("rank 1 has other parameters"));
}

TEST(DataParallel, ADeathDuringBackwardIsNamed) {
  const auto ranks = spawn("death_in_backward", {.size = 3});
  for (const size_t r : {size_t{0}, size_t{2}}) {
    EXPECT_EQ(ranks[r].exit_code, 5) << ranks[r].output;
    EXPECT_THAT(ranks[r].output, HasSubstr("rank 1 died")) << r;
  }
}

TEST(DataParallel, AnErrorOfTheModelKeepsItsKind) {
  for (const RankResult& r : spawn("error_in_backward")) {
    EXPECT_EQ(r.exit_code, 4) << r.output;
    EXPECT_THAT(r.output, HasSubstr("gradient of layer 3 is not finite"));
  }
}

TEST(DataParallel, BroadcastsEveryKindOfTensor) {
  for (const RankResult& r : spawn("broadcasts", {.size = 3})) EXPECT_EQ(r.exit_code, 0) << r.output;
}

}  // namespace

namespace testing {
std::map<std::string, Scenario> data_parallel_scenarios() {
  return {{"equals_one_process", equals_one_process}, {"equals_with_recompute", equals_with_recompute},
          {"other_parameters", other_parameters},     {"death_in_backward", death_in_backward},
          {"error_in_backward", error_in_backward},   {"broadcasts", broadcasts}};
}
}  // namespace testing
}  // namespace fewstep::dist
