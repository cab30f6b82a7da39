// Is an encoder fit to judge? It must put known image sets in their known order, and see more damage as more distance.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "eval/metric.h"
#include "src/tensor/tensor.h"

namespace fewstep::eval {

using FeatureFunction = std::function<Tensor(const Tensor& images)>;  // uint8 [B, C, H, W] -> float [B, D]

// All uint8 [N, C, H, W]; the four sets of `ranking` need the same N: FD has a bias of about 1/N.
struct QualificationSets {
  Tensor reference;  // real, disjoint from `real`
  Tensor real;       // real test images; also what the distortions are applied to
  Tensor reconstructions, gaussian, independent;
  Tensor labels = {};  // int64 [N] of `real`, -1 unknown; undefined: no classes to drop
};

struct RankedSet {
  std::string label;
  Value fd;
};
struct DistortionCurve {
  std::string name, unit;
  std::vector<double> levels, fd;  // level 0 is first in `fd`: undistorted; levels[i] belongs to fd[i + 1]
};
struct Qualification {
  std::string encoder;             // "FD[judge@1a2b3c4d]"
  std::vector<RankedSet> ranking;  // in the order that must be increasing
  std::vector<DistortionCurve> curves;
  bool passed = false;
  std::vector<std::string> reasons;  // why not
};

// Computes every FD against `reference`, then judges.
Qualification qualify(const std::string& encoder, const FeatureFunction& features, const QualificationSets& sets,
                      uint64_t seed);
// The judgement alone, from ranking and curves: sets `passed` and `reasons`.
void judge(Qualification& qualification);

Json qualification_json(const Qualification& qualification);
Qualification qualification_from_json(const Json& json);
// A plain text table for the log.
std::string format_qualification(const Qualification& qualification);

Tensor batched_features(const FeatureFunction& features, const Tensor& images, int64_t batch = 250);

}  // namespace fewstep::eval
