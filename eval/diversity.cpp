#include "eval/diversity.h"

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "eval/compare.h"
#include "eval/extraction.h"
#include "eval/image_source.h"
#include "eval/frechet.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::eval {

Value mean_over(const std::vector<double>& values) {
  if (values.empty()) return {.value = std::numeric_limits<double>::quiet_NaN()};
  const auto count = static_cast<int64_t>(values.size());
  const double n = static_cast<double>(count);
  double mean = 0, squares = 0;
  for (double v : values) mean += v / n;
  for (double v : values) squares += (v - mean) * (v - mean);
  return {.value = mean, .ci95 = count > 1 ? student_t95(count - 1) * std::sqrt(squares / (n - 1) / n) : 0, .n = count};
}

Diversity intra_prompt_diversity(const Tensor& features, const std::vector<int64_t>& groups) {
  const NoGrad no_grad;
  const auto [N, D] = dims<2>(features);
  if (N != static_cast<int64_t>(groups.size()))
    fail("diversity: {} rows of features for {} group ids", N, groups.size());
  const Tensor x = features.to(at::kCPU, at::kDouble);
  const Tensor lengths = x.norm(2, {1}, /*keepdim=*/true);
  const Tensor bad = at::logical_or(at::isfinite(lengths).logical_not(), lengths.eq(0)).flatten();
  if (bad.any().item<bool>())
    fail<NumericError>("diversity: features of image {} are zero or not finite; it has no direction",
                       bad.to(at::kInt).argmax().item<int64_t>());
  const Tensor unit = x / lengths;
  std::map<int64_t, std::vector<int64_t>> members;
  for (size_t i = 0; i < groups.size(); ++i) members[groups[i]].push_back(static_cast<int64_t>(i));
  Diversity out;
  std::vector<double> distances;
  for (const auto& [group, rows] : members) {
    if (rows.size() < 2) {
      ++out.singles;
      continue;
    }
    const Tensor u = unit.index_select(0, at::tensor(rows, at::kLong));
    const double n = static_cast<double>(rows.size());
    // |sum of u|^2 = n + the sum of the cosines of all ordered pairs.
    const double cosines = u.sum(0).square().sum().item<double>() - u.square().sum().item<double>();
    distances.push_back(1 - cosines / (n * (n - 1)));
    out.images += static_cast<int64_t>(rows.size());
  }
  if (distances.empty())
    fail<ConfigError>("diversity: none of {} prompts has two images; draw several of each (fewstep sample --num 4)",
                      out.singles);
  out.prompts = static_cast<int64_t>(distances.size());
  out.distance = mean_over(distances);
  return out;
}

Json folder_diversity(const std::filesystem::path& images, const ImageEncoder& encoder) {
  if (!std::filesystem::is_directory(images)) fail<DataError>("{}: no such folder of images", images.string());
  const CaptionedFiles set = read_captions(images, images / "metadata.jsonl");
  std::map<std::string, int64_t> ids;
  std::vector<int64_t> groups;
  for (const std::string& text : set.texts)
    groups.push_back(ids.emplace(text, static_cast<int64_t>(ids.size())).first->second);
  if (ids.size() == set.texts.size())
    fail<ConfigError>("{}: none of {} prompts has two images; draw several of each (fewstep sample --num 4)",
                      images.string(), ids.size());
  std::vector<Tensor> parts;
  extract(*image_files_of(images, set.names), encoder, {.label = images.filename().string()},
          [&](const Encoded& e) { parts.push_back(e.features); });
  const Diversity d = intra_prompt_diversity(at::cat(parts), groups);
  if (d.singles > 0)
    log::warn("{}: {} of {} prompts have one image and are left out", images.string(), d.singles, ids.size());
  const EncoderIdentity identity = encoder.identity();
  return {{"metrics",
           {{metric_name("diversity", identity),
             {{"value", d.distance.value}, {"ci95", d.distance.ci95}, {"n", d.distance.n}}}}},
          {"prompts", d.prompts},
          {"prompts_of_one_image", d.singles},
          {"images", d.images},
          {"encoder", {{"name", identity.name}, {"sha256", identity.sha256}, {"pipeline", identity.pipeline}}}};
}

}  // namespace fewstep::eval
