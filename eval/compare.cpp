#include "eval/compare.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "eval/extraction.h"
#include "eval/feature_set.h"
#include "eval/frechet.h"
#include "eval/inception_score.h"
#include "eval/kernel_distance.h"
#include "eval/prdc.h"
#include "eval/statistics_file.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/base/text.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace fs = std::filesystem;
namespace {

CompareSide from_statistics(const fs::path& path, const ImageEncoder& encoder, bool force) {
  const StatisticsFile file = load_statistics(path);
  check_provenance(path, file.provenance, encoder.identity(), force);
  return {.path = path.string(),
          .total = file.statistics,
          .count_known = file.provenance.count > 0,
          .features = {},
          .logits = {}};
}

FeatureSet features_of(const fs::path& path, const ImageEncoder& encoder, const CompareOptions& options) {
  const auto world = dist::World::single();
  return compute_features(
      open_images(path), encoder,
      {.skip_unreadable = options.skip_unreadable, .label = path.filename().string(), .cache = options.cache}, *world);
}

Json value_json(const Value& v) {
  Json json = {{"value", v.value}, {"ci95", v.ci95}, {"n", v.n}};
  if (!v.note.empty()) json["note"] = v.note;
  return json;
}

}  // namespace

CompareSide side_of_features(std::string path, const Tensor& features, const Tensor& logits) {
  constexpr int64_t kManyFeatures = 512;  // a replicate of the interval takes D^3
  if (features.size(0) < 2)
    fail<DataError>("{}: {} image; a distance needs at least 2 (about 10 times the number of features)", path,
                    features.size(0));
  CompareSide side{.path = std::move(path),
                   .groups = GroupedStatistics(features.size(1) > kManyFeatures ? 10 : 20),
                   .total = {},
                   .features = features,
                   .logits = logits};
  side.groups.add(features);
  side.total = side.groups.total();
  return side;
}

FrechetReference frechet_reference(const CompareSide& side) {
  const bool few = side.features.defined() && side.features.size(0) < side.features.size(1);
  return few ? FrechetReference::of_features(side.features) : FrechetReference(side.total);
}

CompareSide load_side(const fs::path& path, const ImageEncoder& encoder, const CompareOptions& options) {
  if (!holds_images(path) && is_statistics_name(path) && fs::exists(path))
    return from_statistics(path, encoder, options.force);
  const FeatureSet set = features_of(path, encoder, options);
  return side_of_features(path.string(), set.features, set.logits);
}

Json write_statistics(const fs::path& images, const fs::path& out, const ImageEncoder& encoder,
                      const CompareOptions& options) {
  if (!is_statistics_name(out)) fail<ConfigError>("{}: statistics are kept in .h5 or .npz files", out.string());
  const auto source = open_images(images);
  const FeatureSet set = features_of(images, encoder, options);
  const CompareSide side = side_of_features(images.string(), set.features, {});
  const EncoderIdentity identity = encoder.identity();
  const std::string hash = source->content_hash();
  save_statistics(out, side.total,
                  {.encoder_sha256 = identity.sha256, .pipeline = identity.pipeline, .data_sha256 = hash});
  return {{"file", out.string()},          {"n", side.total.count()},
          {"dim", side.total.dim()},       {"encoder_sha256", identity.sha256},
          {"pipeline", identity.pipeline}, {"data_sha256", hash}};
}

namespace {

void warn_of_bias(const CompareSide& a, const CompareSide& b) {
  const int64_t n = a.total.count(), m = b.total.count(), D = a.total.dim();
  const bool known = a.count_known && b.count_known;
  if (!known) log::warn("a statistics file does not say of how many images it is: distances carry a bias of about 1/N");
  if (known && n != m)
    log::warn("{} has {} images, {} has {}: distances carry a bias of about 1/N, compare equal numbers only", a.path, n,
              b.path, m);
  if (known && std::min(n, m) < D)
    log::warn("fewer images ({}) than features ({}): the covariance is singular and the distance mostly bias",
              std::min(n, m), D);
}

using Values = std::map<std::string, Value>;

Values frechet_values(const CompareSide& a, const CompareSide& b, const EncoderIdentity& identity,
                      const CompareOptions& options) {
  const FrechetReference reference = frechet_reference(a);
  Values out;
  out[metric_name("FD", identity)] = b.features.defined()
                                         ? frechet_with_interval(reference, b.groups)
                                         : Value{.value = reference.distance(b.total), .n = b.total.count()};
  if (!options.infinity) return out;
  if (!b.features.defined())
    fail<ConfigError>("{}: a statistics file has no features; --infinity needs the images", b.path);
  out[metric_name("FD", identity, "N=infinity")] = frechet_infinity(reference, b.features);
  return out;
}

Values kernel_values(const CompareSide& a, const CompareSide& b, const EncoderIdentity& identity,
                     const CompareOptions& options) {
  const int64_t m = b.features.size(0);
  Values out;
  out[metric_name("KD", identity)] = {.value = kernel_distance(a.features, b.features), .n = m};
  if (options.kid_subsets == 0) return out;
  const MeanStd kid = kid_subsets(a.features, b.features, options.kid_subsets, options.kid_subset_size);
  const std::string detail = fmt::format("{}x{}", options.kid_subsets, options.kid_subset_size);
  out[metric_name("KD", identity, detail)] = {
      .value = kid.mean, .n = m, .note = fmt::format("std over subsets {:.3g}", kid.std)};
  return out;
}

Values neighbour_values(const CompareSide& a, const CompareSide& b, const EncoderIdentity& identity) {
  const Prdc p = prdc(a.features, b.features);
  const int64_t n = a.features.size(0), m = b.features.size(0);
  return {{metric_name("precision", identity, "k=3"), {.value = p.precision, .n = m}},
          {metric_name("recall", identity, "k=3"), {.value = p.recall, .n = n}},
          {metric_name("density", identity, "k=3"), {.value = p.density, .n = m}},
          {metric_name("coverage", identity, "k=3"), {.value = p.coverage, .n = n}}};
}

Json described(const EncoderIdentity& identity, const Values& values) {
  Json metrics = Json::object();
  for (const auto& [name, value] : values) metrics[name] = value_json(value);
  return {{"metrics", metrics},
          {"encoder", {{"name", identity.name}, {"sha256", identity.sha256}, {"pipeline", identity.pipeline}}}};
}

}  // namespace

Json compare(CompareMetric metric, const CompareSide& a, const CompareSide& b, const ImageEncoder& encoder,
             const CompareOptions& options) {
  const EncoderIdentity identity = encoder.identity();
  warn_of_bias(a, b);
  if (metric != CompareMetric::fid)
    for (const CompareSide* side : {&a, &b})
      if (!side->features.defined())
        fail<ConfigError>("{}: a statistics file has no features; kid, prdc and cmmd need the images", side->path);
  Values values;
  switch (metric) {
    case CompareMetric::fid:
      values = frechet_values(a, b, identity, options);
      break;
    case CompareMetric::kid:
      values = kernel_values(a, b, identity, options);
      break;
    case CompareMetric::prdc:
      values = neighbour_values(a, b, identity);
      break;
    case CompareMetric::cmmd:
      values[metric_name("MMD", identity)] = {.value = cmmd(a.features, b.features), .n = b.features.size(0)};
      break;
  }
  Json out = described(identity, values);
  out["encoder"]["dim"] = a.total.dim();
  out["a"] = {{"path", a.path}, {"n", a.total.count()}}, out["b"] = {{"path", b.path}, {"n", b.total.count()}};
  return out;
}

Json score_inception(const CompareSide& side, const ImageEncoder& encoder, int64_t splits) {
  if (!side.logits.defined())
    fail<ConfigError>("{}: this network has no classes, or the statistics no logits; the inception score needs both",
                      side.path);
  const MeanStd score = inception_score(side.logits, splits);
  const EncoderIdentity identity = encoder.identity();
  return described(
      identity,
      {{metric_name("IS", identity, fmt::format("splits={}", splits)),
        {.value = score.mean, .n = side.logits.size(0), .note = fmt::format("std over splits {:.3g}", score.std)}}});
}

CaptionedFiles read_captions(const fs::path& images, const fs::path& list) {
  std::ifstream file(list);
  if (!file)
    fail<DataError>(
        "{}: cannot be read; it lists the images with their captions, a line each: {{\"file_name\": \"a.png\", "
        "\"text\": \"a cat\"}}",
        list.string());
  CaptionedFiles out;
  int64_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (trim(line).empty()) continue;
    const Json entry = Json::parse(line, nullptr, false);
    const auto text = [&](const char* key) {
      return entry.is_object() && entry.contains(key) && entry[key].is_string() ? entry[key].get<std::string>()
                                                                                : std::string();
    };
    if (text("file_name").empty() || text("text").empty())
      fail<DataError>("{}:{}: expected {{\"file_name\": ..., \"text\": ...}}, found {}", list.string(), number, line);
    out.names.push_back(text("file_name"));
    if (!fs::exists(images / out.names.back()))
      fail<DataError>("{}:{}: there is no image {}", list.string(), number, (images / out.names.back()).string());
    out.texts.push_back(text("text"));
  }
  if (out.names.empty()) fail<DataError>("{}: lists no image", list.string());
  return out;
}

Json compare_captions(const fs::path& images, const fs::path& captions, const TextImageEncoder& clip,
                      const ClipScoreKind& kind, bool skip_unreadable) {
  constexpr size_t kBatch = 256;
  CaptionedFiles set = read_captions(images, captions.empty() ? images / "metadata.jsonl" : captions);
  for (std::string& text : set.texts) text = std::string(kind.prefix) + text;
  std::vector<Tensor> parts, texts;
  const Extraction read =
      extract(*image_files_of(images, set.names), ImageTower(clip),
              {.skip_unreadable = skip_unreadable, .label = images.filename().string()},
              [&](const Encoded& e) { parts.push_back(e.features); });
  if (!read.unreadable.empty()) {  // pairs stay pairs
    std::vector<std::string> kept;
    for (size_t i = 0; i < set.names.size(); ++i)
      if (!std::binary_search(read.unreadable_places.begin(), read.unreadable_places.end(), i))
        kept.push_back(set.texts[i]);
    set.texts = std::move(kept);
  }
  for (size_t i = 0; i < set.texts.size(); i += kBatch)
    texts.push_back(
        clip.text_embeddings({set.texts.begin() + static_cast<int64_t>(i),
                              set.texts.begin() + static_cast<int64_t>(std::min(i + kBatch, set.texts.size()))}));
  const Tensor cosines = (at::cat(parts).to(at::kDouble) * at::cat(texts).to(at::kDouble)).sum(1);
  if (clip.truncated() > 0)
    log::warn("{} of {} captions were longer than the text encoder reads and were cut", clip.truncated(),
              set.texts.size());
  const EncoderIdentity identity = clip.identity();
  const Value value = clip_score(kind, cosines, clip.logit_scale());
  return {{"metrics", {{metric_name("CLIPScore", identity, kind.name), value_json(value)}}},
          {"encoder", {{"name", identity.name}, {"sha256", identity.sha256}}},
          {"definition", kind.meaning},
          {"truncated_captions", clip.truncated()},
          {"unreadable", read.unreadable}};
}

}  // namespace fewstep::eval
