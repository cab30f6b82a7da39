#include "eval/qualification.h"

#include <nlohmann/json.hpp>

#include "eval/distortions.h"
#include "eval/frechet.h"
#include "src/base/error.h"
#include "src/base/progress.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {

Tensor batched_features(const FeatureFunction& features, const Tensor& images, int64_t batch) {
  std::vector<Tensor> parts;
  for (int64_t i = 0; i < images.size(0); i += batch)
    parts.push_back(features(images.slice(0, i, std::min(i + batch, images.size(0)))).to(at::kCPU, at::kFloat));
  FEW_CHECK(!parts.empty(), "features of an empty image set");
  return at::cat(parts);
}

namespace {

// Up to five classes fewer, as far as two stay; none where labels are missing.
std::vector<double> droppable_classes(const Tensor& labels) {
  if (!labels.defined() || labels.numel() == 0 || labels.lt(0).any().item<bool>()) return {};
  std::vector<double> levels;
  for (int64_t k = 1; k <= std::min<int64_t>(5, labels.max().item<int64_t>() - 1); ++k)
    levels.push_back(static_cast<double>(k));
  return levels;
}

}  // namespace

Qualification qualify(const std::string& encoder, const FeatureFunction& features, const QualificationSets& sets,
                      uint64_t seed) {
  Qualification q;
  q.encoder = encoder;
  FeatureStatistics reference;
  reference.add(batched_features(features, sets.reference));
  const FrechetReference frechet(reference);
  const std::vector<double> dropped = droppable_classes(sets.labels);
  Progress progress("qualification", 4 + 5 * static_cast<int64_t>(distortions().size()) + std::ssize(dropped));
  int64_t done = 0;
  const auto fd = [&](const Tensor& images) {
    GroupedStatistics statistics;
    statistics.add(batched_features(features, images));
    progress.update(++done);
    return statistics;
  };
  const std::pair<const char*, const Tensor*> ranked[] = {{"real test images", &sets.real},
                                                          {"reconstructions", &sets.reconstructions},
                                                          {"class-conditional pixel Gaussian", &sets.gaussian},
                                                          {"independent tokens", &sets.independent}};
  for (const auto& [label, images] : ranked) {
    if (images->size(0) != sets.real.size(0))
      fail("qualification: {} {} against {} real images; FD depends on N, so the sets must be equal", images->size(0),
           label, sets.real.size(0));
    q.ranking.push_back({label, frechet_with_interval(frechet, fd(*images))});
  }
  for (const Distortion& d : distortions()) {
    DistortionCurve curve{std::string(d.name), std::string(d.unit), d.levels, {q.ranking[0].fd.value}};
    for (double level : d.levels) curve.fd.push_back(frechet.distance(fd(d.apply(sets.real, level, seed)).total()));
    q.curves.push_back(std::move(curve));
  }
  if (!dropped.empty()) {
    DistortionCurve curve{"class drop", "classes", dropped, {q.ranking[0].fd.value}};
    for (double k : dropped)
      curve.fd.push_back(
          frechet.distance(fd(drop_classes(sets.real, sets.labels, static_cast<int64_t>(k))).total()));
    q.curves.push_back(std::move(curve));
  }
  progress.finish();
  judge(q);
  return q;
}

void judge(Qualification& q) {
  q.reasons.clear();
  if (q.ranking.size() < 2) q.reasons.push_back("no sets to rank");
  for (size_t i = 1; i < q.ranking.size(); ++i) {
    const RankedSet &low = q.ranking[i - 1], &high = q.ranking[i];
    if (!(high.fd.value > low.fd.value))
      q.reasons.push_back(fmt::format("{} ({:.4g}) should be farther than {} ({:.4g})", high.label, high.fd.value,
                                      low.label, low.fd.value));
  }
  for (const DistortionCurve& curve : q.curves)
    for (size_t i = 1; i < curve.fd.size(); ++i)
      if (!(curve.fd[i] > curve.fd[i - 1]))
        q.reasons.push_back(fmt::format("{} at level {} ({:.4g} after {:.4g}): distance must rise with damage",
                                        curve.name, curve.levels[i - 1], curve.fd[i], curve.fd[i - 1]));
  q.passed = q.reasons.empty();
}

Json qualification_json(const Qualification& q) {
  Json j = {{"encoder", q.encoder},
            {"passed", q.passed},
            {"reasons", q.reasons},
            {"ranking", Json::array()},
            {"distortions", Json::array()}};
  for (const RankedSet& r : q.ranking)
    j["ranking"].push_back({{"label", r.label}, {"value", r.fd.value}, {"ci95", r.fd.ci95}, {"n", r.fd.n}});
  for (const DistortionCurve& c : q.curves)
    j["distortions"].push_back({{"name", c.name}, {"unit", c.unit}, {"levels", c.levels}, {"fd", c.fd}});
  return j;
}

Qualification qualification_from_json(const Json& j) {
  Qualification q;
  q.encoder = j.at("encoder").get<std::string>();
  for (const Json& r : j.at("ranking"))
    q.ranking.push_back(
        {r.at("label").get<std::string>(),
         {.value = r.at("value").get<double>(), .ci95 = r.at("ci95").get<double>(), .n = r.at("n").get<int64_t>()}});
  for (const Json& c : j.at("distortions"))
    q.curves.push_back({c.at("name").get<std::string>(), c.at("unit").get<std::string>(),
                        c.at("levels").get<std::vector<double>>(), c.at("fd").get<std::vector<double>>()});
  q.passed = j.at("passed").get<bool>();
  q.reasons = j.at("reasons").get<std::vector<std::string>>();
  return q;
}

std::string format_qualification(const Qualification& q) {
  std::string out = fmt::format("{}: {}\n", q.encoder, q.passed ? "qualified" : "NOT qualified");
  for (const RankedSet& r : q.ranking)
    out += fmt::format("  {:<34} {:>10.4f} +- {:.4f}\n", r.label, r.fd.value, r.fd.ci95);
  for (const DistortionCurve& c : q.curves) {
    out += fmt::format("  {:<10}", c.name);
    for (size_t i = 0; i < c.fd.size(); ++i)
      out += fmt::format(" {}:{:.3f}", i == 0 ? std::string("0") : fmt::format("{}", c.levels[i - 1]), c.fd[i]);
    out += fmt::format("  ({})\n", c.unit);
  }
  for (const std::string& reason : q.reasons) out += fmt::format("  reason: {}\n", reason);
  return out;
}

}  // namespace fewstep::eval
