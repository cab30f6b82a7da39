// Seconds of a pass against its query length, what it says about this machine, and what a device would take whose passes are
// bound by memory as long as they are short.
#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "src/decoding/session.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "tests/bench/bench_decoding.h"

namespace fewstep::bench {
namespace {

struct Point {
  double tokens;  // rows of the matrix products: queries x guidance pairs
  Seconds pass;
};

// t(T) = memory + token T, or max(memory, token T): seconds with T rows of queries.
struct Fit {
  double memory = 0, token = 0, error = 0;  // error: root mean square of log(t / fit)
  double ridge() const { return memory / token; }
};

double error_of(const std::vector<Point>& points, const std::function<double(double)>& time) {
  double sum = 0;
  for (const Point& p : points) sum += std::pow(std::log(p.pass.wall / time(p.tokens)), 2);
  return std::sqrt(sum / static_cast<double>(points.size()));
}

// Least squares of relative errors: each point weighs 1 / t^2.
Fit fit_sum(const std::vector<Point>& points) {
  double w = 0, wx = 0, wxx = 0, wy = 0, wxy = 0;
  for (const Point& p : points) {
    const double x = p.tokens, y = p.pass.wall, weight = 1 / (y * y);
    w += weight, wx += weight * x, wxx += weight * x * x, wy += weight * y, wxy += weight * x * y;
  }
  const double token = (w * wxy - wx * wy) / (w * wxx - wx * wx);
  Fit f{.memory = (wy - token * wx) / w, .token = token};
  f.error = error_of(points, [&](double T) { return f.memory + f.token * T; });
  return f;
}

// The first k points on the floor, the others on the line: geometric means, the best k.
Fit fit_max(const std::vector<Point>& points) {
  Fit best{.error = INFINITY};
  for (size_t k = 1; k < points.size(); ++k) {
    double floor = 0, line = 0;
    for (size_t i = 0; i < points.size(); ++i)
      (i < k ? floor : line) += std::log(i < k ? points[i].pass.wall : points[i].pass.wall / points[i].tokens);
    Fit f{.memory = std::exp(floor / static_cast<double>(k)), .token = std::exp(line / static_cast<double>(points.size() - k))};
    f.error = error_of(points, [&](double T) { return std::max(f.memory, f.token * T); });
    if (f.error < best.error) best = f;
  }
  return best;
}

std::vector<Point> measure(const RidgeArguments& a, const Model& model, int64_t cached) {
  const NoGrad no_grad;
  decoding::DecodingSession session(*model.image, model.prompts(1), {.guidance = 2, .window = a.most - 1});
  const Tensor table = model.image->table();
  session.pass(at::zeros({1, 0, table.size(1)}, table.options()), Tensor());
  // Keys that were never computed are zeros: attention over them costs the same.
  const Tensor count = at::full({1}, cached, at::kLong);
  if (cached > 0) session.commit(at::zeros({1, cached}, at::kLong), count, count);
  std::vector<Tensor> inputs;
  for (int64_t q = 1; q <= a.most; q *= 2) inputs.push_back(table.narrow(0, 0, std::min(q - 1, table.size(0))).unsqueeze(0));
  std::vector<std::vector<Seconds>> times(inputs.size());
  for (int64_t round = 0; round <= a.rounds; ++round)  // round 0 warms up
    for (size_t i = 0; i < inputs.size(); ++i) {
      const Seconds begin = Seconds::now();
      double repeats = 0;
      do session.pass(inputs[i], Tensor()), ++repeats;
      while ((Seconds::now() - begin).wall < 0.05 && repeats < 100);
      if (round > 0) times[i].push_back((Seconds::now() - begin) / repeats);
    }
  std::vector<Point> points;
  for (size_t i = 0; i < inputs.size(); ++i) points.push_back({2 * static_cast<double>(inputs[i].size(1) + 1), median(times[i])});
  return points;
}

struct Device {
  const char* name;
  double flops, bytes;  // dense bf16 FLOP/s, B/s; their ratio is the ridge in tokens of a bf16 layer
};
constexpr Device kDevices[] = {{"A100", 312e12, 2.0e12}, {"RTX 4090", 165e12, 1.008e12}, {"H200", 989e12, 4.8e12}};

struct Network {
  std::string name;
  double parameters, kv_bytes, attention;  // bytes of keys and values a token, attention FLOP a query and cached token
  double tokens, compression, window, published;
};

// Seconds of a pass over 2 rows of `queries` tokens with half of the image in the cache: `overlap` lets the slower of memory
// and arithmetic hide the other, else they add up.
double pass_seconds(const Network& n, const Device& d, double queries, bool overlap) {
  const double cached = n.tokens / 2, bytes = 2 * n.parameters + 2 * cached * n.kv_bytes;
  const double flops = 2 * queries * (2 * n.parameters + cached * n.attention);
  const double memory = bytes / d.bytes, compute = flops / d.flops;
  return overlap ? std::max(memory, compute) : memory + compute;
}

Json predict(const Network& n) {
  Json out = Json::array();
  for (const Device& d : kDevices) {
    const auto ratio = [&](bool overlap) {
      return n.compression * pass_seconds(n, d, 1, overlap) / pass_seconds(n, d, n.window + 1, overlap);
    };
    const double ar = n.tokens * pass_seconds(n, d, 1, true);
    fmt::print(
        "  {:<15} {:<8} W {:>4.0f}  S {:.2f}  ridge {:>3.0f} tokens  AR {:>8.2f} s  pass x {:.2f} ... {:.2f}  speed-up {:.2f} "
        "... {:.2f}{}\n",
        n.name, d.name, n.window, n.compression, d.flops / d.bytes, ar, n.compression / ratio(true), n.compression / ratio(false),
        ratio(false), ratio(true), n.published > 0 ? fmt::format("  (published: {:.2f})", n.published) : "");
    out.push_back({{"network", n.name},
                   {"device", d.name},
                   {"window", n.window},
                   {"step_compression", n.compression},
                   {"ar_seconds", ar},
                   {"speedup_overlap", ratio(true)},
                   {"speedup_no_overlap", ratio(false)}});
  }
  return out;
}

Json predictions(const RidgeArguments& a, const Model& m) {
  fmt::print(
      "a device bound by memory (bf16, batch 1 with guidance; no launch overhead):\n"
      "  pass(T) = max(M / B, C / F) with overlap, M / B + C / F without;  T = 2 (W + 1) tokens, AR: 2\n"
      "  M = 2 params + 2 N/2 KV bytes a token;  C = T (2 params + 4 layers width N/2);  speed-up = S pass(2) / pass(T)\n");
  Json out = Json::array();
  const auto width = static_cast<double>(m.layers * m.hidden);
  std::vector<Network> networks;
  for (const int64_t w : a.windows)
    networks.push_back({m.name, static_cast<double>(m.parameters), 4 * width, 4 * width, static_cast<double>(m.image->length()),
                        a.assume_s, static_cast<double>(w), 0});
  // Published step compression and speed-up of SJD2, to see what the formula is worth.
  networks.push_back({"Lumina-mGPT 7B", 7e9, 512 * 1024, 4.0 * 32 * 4096, 2357, 4.02, 96, 2.63});
  networks.push_back({"Emu3 8B", 8e9, 128 * 1024, 4.0 * 32 * 4096, 8193, 5.62, 128, 2.54});
  for (const Network& n : networks)
    for (const Json& row : predict(n)) out.push_back(row);
  return out;
}

Json fit_row(const char* name, const Fit& f) {
  fmt::print("  fit {:<22} floor {:>8.3f} ms, {:>7.4f} ms a token, ridge {:>5.1f} tokens, error {:.0f} %\n", name, 1e3 * f.memory,
             1e3 * f.token, f.ridge(), 100 * f.error);
  return {{"form", name}, {"floor", f.memory}, {"token", f.token}, {"ridge_tokens", f.ridge()}, {"error", f.error}};
}

}  // namespace

Json ridge(const RidgeArguments& a) {
  const Model model = make_model(a.model);
  const int64_t cached = std::min(a.cached < 0 ? model.image->length() / 2 : a.cached, model.image->length());
  print_machine();
  fmt::print("{}: {:.1f} M parameters; a pass with {} image tokens in the cache, batch 1 with guidance\n", model.name,
             1e-6 * static_cast<double>(model.parameters), cached);
  const std::vector<Point> points = measure(a, model, cached);
  Json out = {{"section", "ridge"}, {"model", model.name}, {"cached", cached}, {"machine", machine()}, {"points", Json::array()}};
  for (const Point& p : points) {
    fmt::print("  {:>4.0f} x 2 queries {:>9.3f} ms  {:>8.4f} ms a token  x {:>6.2f} of one query  CPU/wall {:.2f}\n",
               p.tokens / 2, 1e3 * p.pass.wall, 1e3 * p.pass.wall / p.tokens, p.pass.wall / points[0].pass.wall,
               p.pass.cpu / p.pass.wall);
    out["points"].push_back({{"queries", p.tokens / 2}, {"tokens", p.tokens}, {"pass", to_json(p.pass)}});
  }
  out["fits"] = {fit_row("floor + token T", fit_sum(points)), fit_row("max(floor, token T)", fit_max(points))};
  fmt::print("this machine, from the measured passes, at S = {:g}:\n", a.assume_s);
  for (const Point& p : points)
    if (p.tokens > 8)
      fmt::print("  W {:>4.0f}: speed-up {:.2f}\n", p.tokens / 2 - 1, a.assume_s * points[0].pass.wall / p.pass.wall);
  out["predictions"] = predictions(a, model);
  return out;
}

}  // namespace fewstep::bench
