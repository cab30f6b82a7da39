// The report of one evaluation, from its results and pictures.
#pragma once
#include "eval/image_sets.h"
#include "eval/report.h"

namespace fewstep::eval {

Report make_eval_report(const EvalConfig& config, const Results& results, ImageSets& sets, const Dataset& test,
                        const std::vector<std::pair<std::string, double>>& seconds);

}  // namespace fewstep::eval
