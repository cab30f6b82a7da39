// Distances in the very features that a discriminator was trained on: never a judgement, always printed apart. A student that
// was taught to look right in these features does so, whatever its images are like; the gap to the judge's distance is what is read.
#pragma once
#include <filesystem>
#include <memory>
#include <span>

#include "eval/encoder.h"
#include "eval/metrics.h"

namespace fewstep::eval {

// The network as a discriminator sees it: images of their own size (brought to whole patches), a transformer's class token; of a
// ConvEncoder what load_image_encoder gives. Its name is "in-loop". ConfigError when its weights are those of one of `judges`:
// a judge must not be what a generator was trained against.
std::unique_ptr<ImageEncoder> load_in_loop_encoder(const std::filesystem::path& folder, at::Device device,
                                                   std::span<const EncoderIdentity> judges);
// in_loop_FD[in-loop@1a2b3c4d]
std::unique_ptr<Metric> make_in_loop_fd(const MetricContext& context);
bool is_in_loop_metric(std::string_view name);

}  // namespace fewstep::eval
