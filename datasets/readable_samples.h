// What happens when a sample cannot be read in the middle of a run: the run ends, or another sample takes its place.
#pragma once
#include <memory>

#include "datasets/dataset.h"

namespace fewstep {

enum class OnError { fail, skip };

struct ReadableConfig {
  OnError on_error = OnError::fail;
  double max_broken = 0.01;  // share of the data set
};
void describe_readable(config::Visitor& v, ReadableConfig& c);  // `on_error`, `max_broken`

// fail: `data` itself. skip: get() of a sample that ends with DataError gives another sample of the same bucket instead,
// chosen by (seed, epoch, index): the same one in every process and after resume. The first few are named in the log;
// DataError when more than max_broken of the samples have turned out broken.
std::unique_ptr<Dataset> readable_samples(std::unique_ptr<Dataset> data, const ReadableConfig& config);

}  // namespace fewstep
