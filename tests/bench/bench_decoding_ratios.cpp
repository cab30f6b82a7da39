// Decoders against autoregressive decoding, in turns: seconds of an image, of a pass, and of a pass outside the transformer.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "tests/bench/bench_decoding.h"

namespace fewstep::bench {
namespace {

using decoding::Coupling;
using decoding::DecoderKind;

// Median of each number over the rounds.
Timing middle(const std::vector<Timing>& rounds) {
  std::vector<Seconds> pass, inside, image;
  std::vector<double> compression;
  for (const Timing& t : rounds)
    pass.push_back(t.pass), inside.push_back(t.inside), image.push_back(t.image), compression.push_back(t.compression);
  return {.pass = median(pass), .inside = median(inside), .compression = median(compression), .image = median(image)};
}

Json row_of(const Timing& t, double speedup, double speedup_cpu) {
  return {{"seconds_per_image", to_json(t.image)},
          {"seconds_per_pass", to_json(t.pass)},
          {"seconds_in_transformer", to_json(t.inside)},
          {"step_compression", t.compression},
          {"overhead", 1 - t.inside.wall / t.pass.wall},
          {"overhead_cpu", 1 - t.inside.cpu / t.pass.cpu},
          {"speedup", speedup},
          {"speedup_cpu", speedup_cpu}};
}

void print_row(const std::string& name, const Json& r) {
  const auto wall = [&](const char* key) { return r.at(key).at("wall").get<double>(); };
  const auto cpu = [&](const char* key) { return r.at(key).at("cpu").get<double>(); };
  fmt::print(
      "  {:<20} {:>9.3f} s/image  speed-up {:>5.2f} (CPU {:>5.2f})  S {:>5.2f}  {:>8.2f} ms/pass  outside transformer {:>5.1f} % "
      "(CPU {:>5.1f} %)  CPU/wall {:.2f}\n",
      name, wall("seconds_per_image"), r.at("speedup").get<double>(), r.at("speedup_cpu").get<double>(),
      r.at("step_compression").get<double>(), 1e3 * wall("seconds_per_pass"), 100 * r.at("overhead").get<double>(),
      100 * r.at("overhead_cpu").get<double>(), cpu("seconds_per_pass") / wall("seconds_per_pass"));
}

// Speed-ups of a side over the first one: the median of the ratios within a round.
std::pair<double, double> speedups(const std::vector<Timing>& first, const std::vector<Timing>& side) {
  std::vector<double> wall, cpu;
  for (size_t r = 0; r < side.size(); ++r)
    wall.push_back(first[r].image.wall / side[r].image.wall), cpu.push_back(first[r].image.cpu / side[r].image.cpu);
  return {median(wall), median(cpu)};
}

void assume(Timing& t, double s, int64_t length, int64_t batch) {
  t.compression = s;
  t.image = t.pass / (s / static_cast<double>(length) * static_cast<double>(batch));
}

Json ratios_at(const RatiosArguments& a, const Model& model, bool whole, int64_t batch) {
  const std::vector<Side> sides = sides_of(a.decoder, model.image->length());
  std::vector<std::vector<Timing>> timings(sides.size());
  const auto run = [&](const Side& side) {
    return whole ? time_whole(model, side, batch, std::max(a.images, batch)) : time_sampled(model, side, batch, a.sampled);
  };
  for (int64_t round = 0; round < a.rounds; ++round)
    for (size_t i = 0; i < sides.size(); ++i) timings[i].push_back(run(sides[i]));
  fmt::print("batch {}{}\n", batch, whole ? "" : ": an image is N / S passes of the mean pass");
  Json rows = Json::array();
  for (size_t i = 0; i < sides.size(); ++i) {
    const auto [wall, cpu] = speedups(timings[0], timings[i]);
    rows.push_back(row_of(middle(timings[i]), wall, cpu));
    rows.back()["side"] = sides[i].name, rows.back()["batch"] = batch;
    print_row(sides[i].name, rows.back());
  }
  if (a.assume_s > 0 && !whole) {
    fmt::print("  the same passes at S = {:g}:\n", a.assume_s);
    for (size_t i = 1; i < sides.size(); ++i) {
      for (Timing& t : timings[i]) assume(t, a.assume_s, model.image->length(), batch);
      const auto [wall, cpu] = speedups(timings[0], timings[i]);
      rows[i]["at_assumed_s"] = row_of(middle(timings[i]), wall, cpu);
      print_row(sides[i].name, rows[i]["at_assumed_s"]);
    }
  }
  return rows;
}

bool decodes_whole(const RatiosArguments& a, const Model& model) { return a.whole || model.image->length() <= 512; }

void print_model(const Model& m, const RatiosArguments& a, bool whole) {
  print_machine();
  fmt::print("{}: {:.1f} M parameters, {} tokens, {} codes; guidance {}, window {}, K {}, top-k {}; {} rounds{}{}\n", m.name,
             1e-6 * static_cast<double>(m.parameters), m.image->length(), m.image->codes(), a.decoder.guidance,
             std::min(a.decoder.window, m.image->length()), a.decoder.steps, a.decoder.top_k, a.rounds,
             whole ? fmt::format(", {} whole images a side and round", a.images)
                   : fmt::format(", passes sampled at {} cache lengths", a.sampled.places),
             m.random ? "; random weights: S is that of the scaled output layer, not of a trained model" : "");
}

}  // namespace

std::vector<Side> sides_of(const DecoderArguments& a, int64_t length) {
  decoding::DecoderOptions base;
  base.sampling.guidance = a.guidance, base.sampling.top_k = a.top_k;
  base.window = std::min(a.window, length), base.steps = a.steps;
  std::vector<Side> sides = {{"ar", base}};
  for (const auto kind : {DecoderKind::sjd, DecoderKind::sjd2})
    for (const auto coupling : {Coupling::maximal, Coupling::gumbel}) {
      Side side{fmt::format("{}+{}", kind == DecoderKind::sjd ? "sjd" : "sjd2 gated",
                            coupling == Coupling::maximal ? "maximal" : "gumbel"),
                base};
      side.options.kind = kind, side.options.coupling = coupling;
      sides.push_back(side);
    }
  return sides;
}

Timing time_whole(const Model& model, const Side& side, int64_t batch, int64_t images, bool deterministic) {
  decoding::DecoderOptions options = side.options;
  options.deterministic = deterministic;
  Seconds total, inside;
  double batch_passes = 0, row_passes = 0;
  for (int64_t first = 0; first < images; first += batch) {
    const int64_t B = std::min(batch, images - first);
    const Tensor prompts = model.prompts(B), ids = at::arange(first, first + B);
    const TimedModel timed(model);
    const Seconds begin = Seconds::now();
    const auto decoded = decoding::decode(timed, prompts, ids, 1, options, model.noise);
    total += Seconds::now() - begin, inside += timed.inside();
    batch_passes += static_cast<double>(decoded.batch_passes), row_passes += decoded.passes.sum().item<double>();
  }
  return {.pass = total / batch_passes,
          .inside = inside / batch_passes,
          .compression = static_cast<double>(images * model.image->length()) / row_passes,
          .image = total / static_cast<double>(images)};
}

// Passes at cache lengths spread evenly over the image. The first ones of each are left out: slots are still pure noise.
Timing time_sampled(const Model& model, const Side& side, int64_t batch, const SampledArguments& s) {
  const NoGrad no_grad;
  Seconds total, inside;
  double gained = 0, count = 0;
  for (int64_t place = 0; place < s.places; ++place) {
    const TimedModel timed(model, model.image->length() * (2 * place + 1) / (2 * s.places), s.warm + s.passes);
    try {
      decoding::decode(timed, timed.prompts(model.prompts(batch)), at::arange(batch), 1, side.options, model.noise);
    } catch (const TimedModel::Enough&) {
    }
    const auto passes = timed.passes();
    const auto warm = static_cast<size_t>(s.warm);
    if (passes.size() < warm + 2)
      fail<Error>("{}: only {} passes at place {}: fewer --warm, --passes", side.name, passes.size(), place);
    for (size_t i = warm; i + 1 < passes.size(); ++i) inside += passes[i].inside;
    total += passes.back().begin - passes[warm].begin;
    count += static_cast<double>(passes.size() - 1 - warm), gained += passes.back().position - passes[warm].position;
  }
  const double S = side.options.kind == DecoderKind::ar ? 1 : gained / count;
  Timing t{.pass = total / count, .inside = inside / count, .compression = S, .image = {}};
  assume(t, S, model.image->length(), batch);
  return t;
}

namespace {
// What is timed must be right: with the same Gumbel noise a window draws the codes of ar, up to a rounding of the network.
void compare_codes(const Model& model, const RatiosArguments& a) {
  std::vector<Side> sides = sides_of(a.decoder, model.image->length());
  sides[0].options.coupling = Coupling::gumbel;
  const auto codes = [&](const Side& side) {
    return decoding::decode(*model.image, model.prompts(1), at::arange(1), 1, side.options, model.noise).codes;
  };
  const Tensor ar = codes(sides[0]), window = codes(sides[2]);
  fmt::print("codes of {} that equal ar's with the same noise: {} of {}\n", sides[2].name, ar.eq(window).sum().item<int64_t>(),
             ar.numel());
}
}  // namespace

Json ratios(const RatiosArguments& a) {
  const Model model = make_model(a.model, a.logit_scale);
  const bool whole = decodes_whole(a, model);
  print_model(model, a, whole);
  if (whole) compare_codes(model, a);
  Json out = {{"section", "ratios"},
              {"model", model.name},
              {"parameters", model.parameters},
              {"tokens", model.image->length()},
              {"window", a.decoder.window},
              {"guidance", a.decoder.guidance},
              {"whole_images", whole},
              {"random_weights", model.random},
              {"machine", machine()},
              {"rows", Json::array()}};
  for (const int64_t batch : a.batch)
    for (const Json& row : ratios_at(a, model, whole, batch)) out["rows"].push_back(row);
  return out;
}

// deterministic decodes the images of a batch one by one. Sampled: as many single passes against one of the batch, whatever S is.
Json deterministic(const RatiosArguments& a) {
  const Model model = make_model(a.model, a.logit_scale);
  const bool whole = decodes_whole(a, model);
  print_model(model, a, whole);
  const int64_t B = a.batch.back();
  const auto run = [&](const Side& side, bool apart) {
    if (whole) return time_whole(model, side, B, B, apart).image;
    const Seconds pass = time_sampled(model, side, apart ? 1 : B, a.sampled).pass;
    return apart ? pass : pass / static_cast<double>(B);
  };
  Json out = {{"section", "deterministic"}, {"model", model.name}, {"batch", B}, {"machine", machine()}, {"rows", Json::array()}};
  for (const Side& side : sides_of(a.decoder, model.image->length())) {
    std::vector<Seconds> together, apart;
    std::vector<double> ratio;
    for (int64_t round = 0; round < a.rounds; ++round) {
      together.push_back(run(side, false)), apart.push_back(run(side, true));
      ratio.push_back(apart.back().wall / together.back().wall);
    }
    const Seconds t = median(together), d = median(apart);
    fmt::print("  {:<20} batch {}: {:>9.2f} ms/{}  deterministic {:>9.2f}  cost {:.2f}x  CPU/wall {:.2f} and {:.2f}\n", side.name,
               B, 1e3 * t.wall, whole ? "image" : "image and pass", 1e3 * d.wall, median(ratio), t.cpu / t.wall, d.cpu / d.wall);
    out["rows"].push_back({{"side", side.name}, {"batched", to_json(t)}, {"deterministic", to_json(d)}, {"cost", median(ratio)}});
  }
  return out;
}

}  // namespace fewstep::bench
