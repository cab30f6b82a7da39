#include "eval/patch_distance.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "eval/compare.h"
#include "eval/extraction.h"
#include "eval/image_source.h"
#include "eval/frechet.h"
#include "eval/preprocessing.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/io/image_sizes.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::eval {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kPatchesAtOnce = 64;  // through the network

struct PatchSide {
  std::string path;
  std::vector<std::string> files;  // that are large enough
  GroupedStatistics groups{20};  // by image
  FeatureStatistics total;       // of patches
  int64_t images = 0, small = 0, unreadable = 0;
};

// Finds the files that are large enough. Without `skip_small` a single small one is an error.
PatchSide list_side(const fs::path& folder, int64_t side, const PatchOptions& options) {
  PatchSide out{.path = folder.string(), .files = {}, .total = {}};
  if (!fs::is_directory(folder))
    fail<DataError>("{}: no such folder of images; patches are cut from images, statistics files have none",
                    folder.string());
  const std::vector<fs::path> files = image_files(folder);
  if (files.empty()) fail<DataError>("{}: no .png, .jpg, .jpeg or .webp files below this folder", folder.string());
  const std::vector<io::ProbedImage> probed = io::probe_image_sizes(files);
  std::string first;
  for (size_t i = 0; i < files.size(); ++i) {
    const auto& [size, error] = probed[i];
    if (error.empty() && std::min(size.width, size.height) < side) {
      if (out.small++ == 0) first = fmt::format("{} ({} x {})", files[i].string(), size.width, size.height);
    } else {
      out.files.push_back(files[i].lexically_relative(folder).generic_string());  // one that cannot be read is the extraction's to report
    }
  }
  if (out.small > 0 && !options.skip_small)
    fail<DataError>(
        "{}: {} of {} images have a side below {}, the first is {}; clean-fid would squash them: mixed populations "
        "(--skip-small leaves them out)",
        folder.string(), out.small, files.size(), side, first);
  if (out.files.empty()) fail<DataError>("{}: all {} images have a side below {}", folder.string(), files.size(), side);
  if (out.small > 0)
    log::warn("{}: {} of {} images have a side below {} and are left out", folder.string(), out.small, files.size(),
              side);
  return out;
}

void encode_side(PatchSide& side, const PatchEncoder& encoder, const PatchOptions& options) {
  const Extraction read = extract(*image_files_of(side.path, side.files), encoder,
                                  {.batch = options.grid ? 8 : 32,
                                   .skip_unreadable = options.skip_unreadable,
                                   .label = fs::path(side.path).filename().string()},
                                  [&](const Encoded& encoded) { side.groups.add(encoded.features); });
  side.total = side.groups.total();
  side.images = read.images, side.unreadable = static_cast<int64_t>(read.unreadable.size());
  if (side.total.count() < 2)
    fail<DataError>("{}: {} patch; a distance needs at least 2 (about 10 times the number of features)", side.path,
                    side.total.count());
}

void warn_of_few(const PatchSide& a, const PatchSide& b) {
  const int64_t n = a.total.count(), m = b.total.count(), D = a.total.dim();
  if (n != m)
    log::warn("{} has {} patches, {} has {}: distances carry a bias of about 1/N, compare equal numbers only", a.path,
              n, b.path, m);
  if (std::min(n, m) < D)
    log::warn("fewer patches ({}) than features ({}): the covariance is singular and the distance mostly bias",
              std::min(n, m), D);
}

Json side_json(const PatchSide& s) {
  return {
      {"path", s.path}, {"images", s.images}, {"n", s.total.count()}, {"small", s.small}, {"unreadable", s.unreadable}};
}

}  // namespace

int64_t network_side(const ImageEncoder& encoder) {
  return encoder.prepare(at::zeros({3, 32, 32}, at::kByte)).size(-1);
}

PatchEncoder::PatchEncoder(const ImageEncoder& inner, const PatchOptions& options)
    : inner_(inner), side_(options.side > 0 ? options.side : network_side(inner)), grid_(options.grid) {}

Tensor PatchEncoder::prepare(const Tensor& image) const {
  const auto [C, H, W] = dims<3>(image);
  if (std::min(H, W) < side_) fail<DataError>("a patch of side {} from an image of {} x {}", side_, W, H);
  if (!grid_) return inner_.prepare(crop_centre(image, side_).contiguous()).unsqueeze(0);
  std::vector<Tensor> patches;
  for (int64_t y = 0; y + side_ <= H; y += side_)
    for (int64_t x = 0; x + side_ <= W; x += side_)
      patches.push_back(inner_.prepare(image.narrow(1, y, side_).narrow(2, x, side_).contiguous()));
  return at::stack(patches);
}

Encoded PatchEncoder::encode_prepared(const Tensor& batch) const {
  const int64_t B = batch.size(0), P = batch.size(1);
  const Tensor rows = batch.flatten(0, 1);
  std::vector<Tensor> parts;
  for (int64_t i = 0; i < rows.size(0); i += kPatchesAtOnce)
    parts.push_back(inner_.encode_prepared(rows.slice(0, i, std::min(i + kPatchesAtOnce, rows.size(0)))).features);
  return {at::cat(parts).view({B, P, -1}), {}};
}

Encoded PatchEncoder::encode(const Tensor& images) const {
  std::vector<Tensor> rows;
  for (int64_t i = 0; i < images.size(0); ++i) rows.push_back(prepare(images[i]));
  return encode_prepared(at::stack(rows));
}

Json patch_distance(const fs::path& a, const fs::path& b, const ImageEncoder& encoder, const PatchOptions& options) {
  const NoGrad no_grad;
  const PatchEncoder patches(encoder, options);
  if (const int64_t side = network_side(encoder); side != patches.side())
    log::warn(
        "patches of {} x {} are resized to the {} x {} that the network reads; train an encoder on such crops, "
        "or leave --side out",
        patches.side(), patches.side(), side, side);
  // Both sides are looked through before the network runs over one of them.
  PatchSide real = list_side(a, patches.side(), options), judged = list_side(b, patches.side(), options);
  encode_side(real, patches, options), encode_side(judged, patches, options);
  warn_of_few(real, judged);
  Value value = frechet_with_interval(FrechetReference(real.total), judged.groups);
  value.n = judged.total.count();
  const EncoderIdentity identity = encoder.identity();
  const std::string name =
      metric_name("patch_FD", identity, fmt::format("{}={}", options.grid ? "grid" : "crop", patches.side()));
  return {{"metrics", {{name, {{"value", value.value}, {"ci95", value.ci95}, {"n", value.n}}}}},
          {"encoder",
           {{"name", identity.name},
            {"sha256", identity.sha256},
            {"pipeline", identity.pipeline},
            {"dim", real.total.dim()}}},
          {"side", patches.side()},
          {"a", side_json(real)},
          {"b", side_json(judged)}};
}

}  // namespace fewstep::eval
