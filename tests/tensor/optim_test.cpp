#include "src/tensor/optim.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

NamedTensors make(at::ScalarType dtype = at::kDouble) {
  const auto options = at::TensorOptions().dtype(dtype);
  return {{"w", (at::arange(15, options) / 7 - 1).view({3, 5}).set_requires_grad(true)},
          {"b", (at::arange(3, options) / 3).set_requires_grad(true)},
          {"v", at::full({2, 2}, 0.3, options).set_requires_grad(true)}};
}

// A smooth loss that mixes all parameters.
Tensor loss_of(const NamedTensors& p, int step) {
  const Tensor& w = p[0].tensor;
  const Tensor x = at::sin(at::arange(5, w.options().requires_grad(false)) + step);
  const Tensor y = at::tanh(at::mv(w, x) + p[1].tensor);
  return (y * y).sum() + (p[2].tensor * y.sum()).sin().sum();
}

TEST(Optim, ParametersAndGradientsAliasTheFlatBuffers) {
  NamedTensors p = make();
  const Tensor handle = p[0].tensor, before = p[0].tensor.detach().clone();  // a module's member shares the TensorImpl
  AdamW optimizer(p, {});
  EXPECT_TRUE(at::equal(handle, before));
  EXPECT_EQ(handle.data_ptr(), optimizer.parameters()[0].tensor.data_ptr());
  for (const NamedTensor& n : p) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(n.tensor.data_ptr()) % 64, 0u) << n.name;
    EXPECT_TRUE(n.tensor.is_leaf() && n.tensor.requires_grad());
    ASSERT_TRUE(n.tensor.grad().defined());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(n.tensor.grad().data_ptr()) % 64, 0u) << n.name;
  }
  // w and v are decayed and share a buffer, 64-byte slots apart: 15 doubles take 128 bytes.
  EXPECT_EQ(static_cast<char*>(p[2].tensor.data_ptr()) - static_cast<char*>(p[0].tensor.data_ptr()), 128);

  const void* grad = p[0].tensor.grad().data_ptr();
  loss_of(p, 0).backward();
  const Tensor once = p[0].tensor.grad().clone();
  loss_of(p, 0).backward();
  EXPECT_EQ(p[0].tensor.grad().data_ptr(), grad) << "autograd must accumulate in place";
  EXPECT_TRUE(at::allclose(p[0].tensor.grad(), once * 2));
  optimizer.zero_grad();
  EXPECT_EQ(p[0].tensor.grad().data_ptr(), grad);
  EXPECT_EQ(p[0].tensor.grad().abs().sum().item<double>(), 0.0);
  p[0].tensor.mutable_grad() = Tensor();  // a caller's set_to_none is undone
  optimizer.zero_grad();
  EXPECT_EQ(p[0].tensor.grad().data_ptr(), grad);
}

// The equations of Loshchilov and Hutter (arXiv 1711.05101, algorithm 2), one scalar expression a line.
struct PlainAdamW {
  OptimizerConfig c;
  std::vector<Tensor> m, v;
  int t = 0;

  void step(std::vector<Tensor>& p, const std::vector<Tensor>& grads, double lr) {
    double norm = 0;
    for (const Tensor& g : grads) norm += g.square().sum().item<double>();
    norm = std::sqrt(norm);
    const double factor = c.clip_norm > 0 ? std::min(1.0, c.clip_norm / (norm + 1e-6)) : 1.0;
    ++t;
    for (size_t i = 0; i < p.size(); ++i) {
      if (m.size() <= i) {
        m.push_back(at::zeros_like(p[i]));
        v.push_back(at::zeros_like(p[i]));
      }
      const Tensor g = grads[i] * factor;
      if (p[i].dim() >= 2) p[i] = p[i] * (1 - lr * c.weight_decay);
      m[i] = c.beta1 * m[i] + (1 - c.beta1) * g;
      v[i] = c.beta2 * v[i] + (1 - c.beta2) * g * g;
      const Tensor mh = m[i] / (1 - std::pow(c.beta1, t)), vh = v[i] / (1 - std::pow(c.beta2, t));
      p[i] = p[i] - lr * mh / (vh.sqrt() + c.eps);
    }
  }
};

void compare_with_plain(at::ScalarType dtype, double clip, double tolerance) {
  OptimizerConfig c;
  c.weight_decay = 0.1;
  c.clip_norm = clip;
  c.ema_decay = 0.9;
  NamedTensors p = make(dtype);
  AdamW optimizer(p, c);
  PlainAdamW plain{c, {}, {}};
  std::vector<Tensor> q, ema;
  for (const NamedTensor& n : p) q.push_back(n.tensor.detach().clone().to(at::kDouble));
  ema = q;
  for (int step = 0; step < 10; ++step) {
    optimizer.zero_grad();
    loss_of(p, step).backward();
    optimizer.step(0.01 * (1 + step % 3), optimizer.grad_norm());
    optimizer.update_ema();
    NamedTensors r;
    std::vector<Tensor> grads;
    for (size_t i = 0; i < q.size(); ++i) r.push_back({p[i].name, q[i].clone().set_requires_grad(true)});
    loss_of(r, step).backward();
    for (const NamedTensor& n : r) grads.push_back(n.tensor.grad());
    plain.step(q, grads, 0.01 * (1 + step % 3));
    for (size_t i = 0; i < q.size(); ++i) ema[i] = 0.9 * ema[i] + 0.1 * q[i];
  }
  EXPECT_EQ(optimizer.updates(), 10);
  for (size_t i = 0; i < q.size(); ++i) {
    EXPECT_LE((p[i].tensor.detach().to(at::kDouble) - q[i]).abs().max().item<double>(), tolerance) << p[i].name;
    EXPECT_LE((optimizer.ema_state().at(p[i].name).to(at::kDouble) - ema[i]).abs().max().item<double>(), tolerance);
  }
}

TEST(Optim, EqualsThePlainEquationsInFloat64) { compare_with_plain(at::kDouble, 0.0, 1e-13); }
TEST(Optim, EqualsThePlainEquationsInFloat64Clipped) { compare_with_plain(at::kDouble, 0.05, 1e-13); }
TEST(Optim, EqualsThePlainEquationsInFloat32Clipped) { compare_with_plain(at::kFloat, 0.05, 2e-5); }

// torch.optim.AdamW(lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.5) from 1, gradients 0.5, -2, 0.25, in float64.
TEST(Optim, KnownValues) {
  OptimizerConfig c;
  c.beta2 = 0.99;
  c.weight_decay = 0.5;
  c.clip_norm = 0;
  NamedTensors p = {{"w", at::ones({1, 1}, at::kDouble).set_requires_grad(true)}};
  AdamW optimizer(p, c);
  const double gradient[] = {0.5, -2.0, 0.25};
  const double wanted[] = {0.8500000019999999, 0.8633390413225704, 0.8554200252422844};
  for (int i = 0; i < 3; ++i) {
    optimizer.zero_grad();
    (p[0].tensor * gradient[i]).sum().backward();
    optimizer.step(0.1, optimizer.grad_norm());
    EXPECT_NEAR(p[0].tensor.item<double>(), wanted[i], 1e-14) << i;
  }
}

TEST(Optim, GradNormSpansGroupsAndTypes) {
  NamedTensors p = make(at::kFloat);
  p.push_back({"d", at::zeros({70000}, at::kDouble).set_requires_grad(true)});
  p.push_back({"h", at::zeros({4, 4}, at::kBFloat16).set_requires_grad(true)});
  AdamW optimizer(p, {});
  double want = 0;
  for (const NamedTensor& n : p) {
    n.tensor.grad().fill_(0.25);
    want += 0.0625 * static_cast<double>(n.tensor.numel());
  }
  EXPECT_NEAR(optimizer.grad_norm().item<double>(), std::sqrt(want), 1e-6);
  optimizer.step(1e-3, optimizer.grad_norm());
  for (const NamedTensor& n : p)  // clipped to norm 1 in place
    EXPECT_NEAR(n.tensor.grad().flatten()[0].item<double>(), 0.25 / std::sqrt(want), n.name == "h" ? 1e-5 : 1e-8);
}

TEST(Optim, StateRoundTripContinuesBitForBit) {
  OptimizerConfig c;
  c.ema_decay = 0.99;
  NamedTensors p = make(at::kFloat), q = make(at::kFloat);
  AdamW a(p, c);
  const auto train = [](AdamW& o, const NamedTensors& n, int from, int to) {
    for (int i = from; i < to; ++i) {
      o.zero_grad();
      loss_of(n, i).backward();
      o.step(0.01, o.grad_norm());
      o.update_ema();
    }
  };
  train(a, p, 0, 5);
  AdamW b(q, c);
  {
    const NoGrad no_grad;
    for (size_t i = 0; i < p.size(); ++i) q[i].tensor.copy_(p[i].tensor);
  }
  b.load_state(a.state());
  b.load_ema_state(a.ema_state());
  EXPECT_EQ(b.updates(), 5);
  train(a, p, 5, 9);
  train(b, q, 5, 9);
  for (size_t i = 0; i < p.size(); ++i) {
    EXPECT_TRUE(at::equal(p[i].tensor, q[i].tensor)) << p[i].name;
    EXPECT_TRUE(at::equal(a.ema_state().at(p[i].name), b.ema_state().at(p[i].name)));
  }
}

TEST(Optim, LoadIsStrict) {
  NamedTensors p = make();
  AdamW optimizer(p, {});
  TensorMap state = optimizer.state();
  EXPECT_EQ(state.size(), 7u);
  EXPECT_EQ(state.at("exp_avg.w").sizes(), p[0].tensor.sizes());
  state.erase("exp_avg.w");
  state.emplace("exp_avg.u", at::zeros({1}));
  state["exp_avg_sq.b"] = at::zeros({4});
  EXPECT_THAT([&] { optimizer.load_state(state); },
              ThrowsMessage<DataError>(AllOf(HasSubstr("missing: exp_avg.w"), HasSubstr("extra: exp_avg.u"),
                                             HasSubstr("exp_avg_sq.b is [4], not [3]"))));
  EXPECT_THROW(optimizer.load_ema_state(optimizer.ema_state()), Error) << "no EMA is kept";
}

TEST(Optim, SwapEmaTwiceIsNothing) {
  OptimizerConfig c;
  c.ema_decay = 0.5;
  NamedTensors p = make();
  AdamW optimizer(p, c);
  loss_of(p, 0).backward();
  optimizer.step(0.1, optimizer.grad_norm());
  optimizer.update_ema();
  const Tensor weight = p[0].tensor.detach().clone(), ema = optimizer.ema_state().at("w").clone();
  EXPECT_FALSE(at::equal(weight, ema));
  optimizer.swap_ema();
  EXPECT_TRUE(at::equal(p[0].tensor, ema));
  optimizer.swap_ema();
  EXPECT_TRUE(at::equal(p[0].tensor, weight));
}

// diffusers.training_utils.EMAModel(decay=0.99).get_decay(i + 1) for i = 0, 1, 2, ...
TEST(Optim, EmaWarmupIsThatOfDiffusers) {
  OptimizerConfig c;
  c.ema_decay = 0.99;
  EXPECT_EQ(ema_decay(c, 0), 0.99);
  c.ema_warmup = EmaWarmup::diffusers;
  const double wanted[] = {0.0, 2.0 / 11, 3.0 / 12, 4.0 / 13};
  for (int i = 0; i < 4; ++i) EXPECT_DOUBLE_EQ(ema_decay(c, i), wanted[i]);
  EXPECT_DOUBLE_EQ(ema_decay(c, 889), 890.0 / 899);
  EXPECT_EQ(ema_decay(c, 100000), 0.99);

  NamedTensors p = make(), q = make();
  AdamW a(p, c), b(q, c);
  std::vector<Tensor> ema(p.size());
  for (int step = 0; step < 3; ++step) {
    a.zero_grad();
    loss_of(p, step).backward();
    a.step(0.05, a.grad_norm());
    a.update_ema();
    const double d = wanted[step];
    for (size_t i = 0; i < p.size(); ++i) {
      const Tensor w = p[i].tensor.detach();
      ema[i] = step == 0 ? w.clone() : d * ema[i] + (1 - d) * w;
      EXPECT_TRUE(at::allclose(a.ema_state().at(p[i].name), ema[i], 1e-12, 1e-14)) << step << p[i].name;
    }
  }
  // The count is part of the state: the next decay is 4 / 13 again, not 0.
  b.load_ema_state(a.ema_state());
  const Tensor before = b.ema_state().at("w").clone();
  b.update_ema();
  EXPECT_TRUE(at::allclose(b.ema_state().at("w"), before + (q[0].tensor.detach() - before) * (9.0 / 13), 1e-12, 1e-14));
  TensorMap without = a.ema_state();
  without.erase("ema_updates");
  EXPECT_THAT([&] { b.load_ema_state(without); }, ThrowsMessage<DataError>(HasSubstr("missing: ema_updates")));
}

TEST(Optim, RefusesFrozenAndComputed) {
  NamedTensors p = make();
  p[1].tensor.set_requires_grad(false);
  EXPECT_THAT([&] { AdamW(p, {}); }, ThrowsMessage<Error>(HasSubstr("'b' requires no gradient")));
  p[1].tensor = p[0].tensor * 2;
  EXPECT_THAT([&] { AdamW(p, {}); }, ThrowsMessage<Error>(HasSubstr("only leaves")));
  EXPECT_THROW(AdamW({}, {}), ConfigError);
}

TEST(Optim, ScheduleEndPoints) {
  OptimizerConfig c;
  c.lr = 2.0;
  c.warmup_steps = 10;
  c.final_lr_fraction = 0.1;
  for (LrSchedule s : {LrSchedule::cosine, LrSchedule::linear}) {
    c.schedule = s;
    EXPECT_DOUBLE_EQ(learning_rate(c, 0, 100), 2.0 / 11);
    EXPECT_DOUBLE_EQ(learning_rate(c, 9, 100), 2.0 * 10 / 11);
    EXPECT_DOUBLE_EQ(learning_rate(c, 10, 100), 2.0);
    EXPECT_NEAR(learning_rate(c, 99, 100), 0.2, 1e-12);
    EXPECT_NEAR(learning_rate(c, 1000, 100), 0.2, 1e-12);
    for (int64_t i = 11; i < 100; ++i) EXPECT_LT(learning_rate(c, i, 100), learning_rate(c, i - 1, 100));
  }
  c.schedule = LrSchedule::linear;
  EXPECT_NEAR(learning_rate(c, 10 + 30, 71), 0.5 * (2.0 + 0.2), 1e-12);
  c.schedule = LrSchedule::cosine;
  EXPECT_NEAR(learning_rate(c, 10 + 30, 71), 0.5 * (2.0 + 0.2), 1e-12);
  c.schedule = LrSchedule::constant;
  EXPECT_DOUBLE_EQ(learning_rate(c, 99, 100), 2.0);
  c.warmup_steps = 200;  // longer than the run: still finite
  EXPECT_GT(learning_rate(c, 99, 100), 0.0);
}

}  // namespace
}  // namespace fewstep
