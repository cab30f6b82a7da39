// The networks' looks at the images of a protocol.
#include <algorithm>
#include <optional>

#include "eval/clip_scores.h"
#include "eval/feature_set.h"
#include "eval/protocol_run.h"
#include "eval/statistics_file.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace {

namespace fs = std::filesystem;

std::shared_ptr<const ImageSource> prepared(const ProtocolRun& run, std::shared_ptr<const ImageSource> images) {
  if (run.protocol.side == 0) return images;
  return squares(std::move(images), run.protocol.side);
}

std::string folder_of(const ProtocolEncoders& e, std::string_view key) {
  if (key == "inception") return e.inception;
  if (key == "clip") return e.clip;
  if (key == "cmmd") return e.cmmd;
  return key == "dinov2" ? e.dinov2 : e.vgg;
}

EncoderOptions options_of(const ProtocolRun& run, EncoderView view, const std::string& folder) {
  if (!is_published_encoder(folder)) return {};  // encoders trained here have one way only
  switch (view) {
    case EncoderView::inception:
    case EncoderView::inception_patch:
      return {.pipeline = run.protocol.pipeline};
    case EncoderView::inception_spatial:
      return {.pipeline = run.protocol.pipeline, .tap = "spatial"};
    case EncoderView::cmmd:
      return {.pipeline = "square_first"};
    default:
      return {};
  }
}

// A network trained here goes by the name of its folder: it is no Inception, whatever key it was given at.
std::string name_of(const ViewKind& view, const std::string& folder) {
  if (is_published_encoder(folder)) return std::string(view.encoder);
  const fs::path path = fs::path(folder).lexically_normal();
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

void count(ProtocolRun& run, const std::string& side, const FeatureSet& set) {
  for (const ProtocolCounts& c : run.counts)
    if (c.side == side) return;  // views see the same files, but for crops
  run.counts.push_back({side, set.features.size(0), set.constant, set.grey, set.unreadable_count, set.unreadable});
}

FeatureSet features(ProtocolRun& run, const std::shared_ptr<const ImageSource>& source, const ImageEncoder& encoder,
                    const std::string& label, const fs::path& cache, bool skip_unreadable) {
  FeatureSet set = compute_features(source, encoder,
                                    {.skip_unreadable = skip_unreadable,
                                     .label = fmt::format("{}, {}", label, encoder.identity().name),
                                     .cache = cache},
                                    run.world);
  count(run, label, set);
  return set;
}

FeatureSet features(ProtocolRun& run, const std::shared_ptr<const ImageSource>& source, const ImageEncoder& encoder,
                    const std::string& label, const fs::path& cache) {
  return features(run, source, encoder, label, cache, run.config.skip_unreadable);
}

// COCO has images with a side below that of a crop: clean-fid squashes them among the crops. Here they are left out and
// counted. (What cannot be read at all was met by the views before.)
FeatureSet crop_features(ProtocolRun& run, const std::shared_ptr<const ImageSource>& images,
                         const ImageEncoder& encoder, const std::string& label, const fs::path& cache) {
  return features(run, central_crops(images, kPatchSide), encoder, label + ", crops", cache, /*skip_unreadable=*/true);
}

void compute(ProtocolRun& run, const ProtocolMetrics& metrics, const ViewInputs& inputs) {
  if (!run.world.is_main()) return;
  for (const ProtocolMetric* metric : metrics) run.row.metrics.merge(metric->compute(inputs));
}

CompareSide side_at(const std::string& path, const FeatureSet& set) {
  return side_of_features(path, set.features, set.logits);
}

// Pairs need the same prompts on both sides.
void check_pairs(const ProtocolRun& run, const Tensor& own_places, const Tensor& baseline_places) {
  if (!at::equal(own_places, baseline_places))
    fail<DataError>("paired_with: {} and {} do not have the same readable images", run.config.paired_with,
                    run.samples->path());
}

void look_at_images(ProtocolRun& run, const ViewKind& view, const std::string& folder, const ProtocolMetrics& metrics) {
  const ProtocolConfig& c = run.config;
  const auto encoder =
      load_image_encoder(folder, name_of(view, folder), run.world.device(), options_of(run, view.view, folder));
  const auto seen = [&](const std::shared_ptr<const ImageSource>& images, const char* label, const fs::path& cache) {
    return view.patch ? crop_features(run, images, *encoder, label, cache)
                      : features(run, prepared(run, images), *encoder, label, cache);
  };
  run.results.encoders.push_back(encoder->identity());
  const fs::path own_cache = output_folder(c) / "features";
  std::optional<CompareSide> baseline;
  CompareSide real{.path = c.reference, .total = {}, .features = {}, .logits = {}};
  if (run.real) {
    real = side_at(run.real->path(), seen(run.real, "real images", c.cache));
  } else {
    const StatisticsFile file = load_statistics(c.reference);
    check_provenance(c.reference, file.provenance, encoder->identity(), /*force=*/false);
    real.total = file.statistics;
  }
  const FeatureSet own = seen(run.samples, "samples", own_cache);
  const CompareSide samples = side_at(run.samples->path(), own);
  if (run.baseline) {
    const FeatureSet other = seen(run.baseline, "baseline", fs::path(c.paired_with) / "features");
    check_pairs(run, own.places, other.places);
    baseline = side_at(run.baseline->path(), other);
  }
  compute(run, metrics,
          {.protocol = run.protocol,
           .identity = encoder->identity(),
           .real = &real,
           .samples = &samples,
           .baseline = baseline ? &*baseline : nullptr});
}

Tensor text_embeddings(const TextImageEncoder& clip, const std::vector<Prompt>& prompts, const Tensor& places,
                       std::string_view prefix) {
  constexpr int64_t kBatch = 256;
  std::vector<Tensor> parts;
  for (int64_t i = 0; i < places.numel(); i += kBatch) {
    std::vector<std::string> texts;
    for (int64_t j = i; j < std::min(i + kBatch, places.numel()); ++j)
      texts.push_back(std::string(prefix) + prompts[static_cast<size_t>(places[j].item<int64_t>())].text);
    parts.push_back(clip.text_embeddings(texts));
  }
  return at::cat(parts).to(at::kDouble);
}

struct Cosines {
  Tensor own, shuffled;  // float64 [N]: of every image that could be read with its caption, and with the next one's
  Tensor places;         // int64 [N] of the prompts
};

Cosines cosines_of(ProtocolRun& run, const TextImageEncoder& clip, const std::shared_ptr<const ImageSource>& images,
                   const std::string& label, const fs::path& cache) {
  const std::string_view prefix = find_clip_score(run.protocol.clip_definition).prefix;
  const FeatureSet set = features(run, prepared(run, images), ImageTower(clip), label, cache);
  const Tensor x = set.features.to(at::kDouble), texts = text_embeddings(clip, run.prompts, set.places, prefix);
  return {(x * texts).sum(1), (x * texts.roll(-1, 0)).sum(1), set.places};
}

void look_at_captions(ProtocolRun& run, const ViewKind& view, const std::string& folder,
                      const ProtocolMetrics& metrics) {
  const ClipScoreKind& kind = find_clip_score(run.protocol.clip_definition);
  const auto clip =
      load_text_image_encoder(folder, name_of(view, folder), run.world.device(), {.cleaning = kind.cleaning});
  const EncoderIdentity identity = clip->identity();
  run.results.encoders.push_back(identity);
  const Cosines found = cosines_of(run, *clip, run.samples, "samples", output_folder(run.config) / "features");
  run.cosines = found.own, run.places = found.places;
  run.truncated = clip->truncated();
  run.clip_name = metric_name("CLIPScore", identity, kind.name);
  ViewInputs inputs{.protocol = run.protocol,
                    .identity = identity,
                    .cosines = found.own,
                    .shuffled_cosines = found.shuffled,
                    .logit_scale = clip->logit_scale()};
  if (run.baseline) {
    const Cosines baseline =
        cosines_of(run, *clip, run.baseline, "baseline", fs::path(run.config.paired_with) / "features");
    check_pairs(run, found.places, baseline.places);
    inputs.baseline_cosines = baseline.own;
  }
  compute(run, metrics, inputs);
  if (run.truncated > 0)
    log::warn("{} of {} captions were longer than the text encoder reads and were cut", run.truncated,
              run.prompts.size());
}

}  // namespace

ProtocolMetrics wanted_metrics(const ProtocolRun& run, const ViewKind& view) {
  const ProtocolConfig& c = run.config;
  ProtocolMetrics wanted;
  const bool given = !folder_of(c.encoders, view.encoder).empty();
  // A network trained here has no spatial features.
  const bool fits =
      view.view != EncoderView::inception_spatial || (given && is_published_encoder(c.encoders.inception));
  for (const ProtocolMetric& metric : protocol_metrics()) {
    if (metric.view != view.view) continue;
    const bool named = std::find(c.metrics.begin(), c.metrics.end(), metric.name) != c.metrics.end();
    if (named && !given) fail<ConfigError>("metrics: {} needs encoders.{}", metric.name, view.encoder);
    if (named && !run.real && !metric.only_moments)
      fail<ConfigError>("metrics: {} needs 'images'; the statistics of 'reference' hold no features", metric.name);
    const bool by_default =
        c.metrics.empty() && given && fits && (!view.patch || run.protocol.patch) && (run.real || metric.only_moments);
    if (named || by_default) wanted.push_back(&metric);
  }
  return wanted;
}

void probe(const ProtocolRun& run, const ViewKind& view) {
  const std::string folder = folder_of(run.config.encoders, view.encoder);
  if (view.text)
    load_text_image_encoder(folder, name_of(view, folder), at::kCPU);
  else
    load_image_encoder(folder, name_of(view, folder), at::kCPU, options_of(run, view.view, folder));
}

void look(ProtocolRun& run, const ViewKind& view, const ProtocolMetrics& metrics) {
  const std::string folder = folder_of(run.config.encoders, view.encoder);
  view.text ? look_at_captions(run, view, folder, metrics) : look_at_images(run, view, folder, metrics);
}

}  // namespace fewstep::eval
