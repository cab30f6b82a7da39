#include "eval/feature_set.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "eval/extraction.h"
#include "eval/statistics_file.h"
#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/hash.h"
#include "src/base/json.h"
#include "src/base/log.h"
#include "src/io/hdf5.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace {

namespace fs = std::filesystem;
constexpr const char* kFeatureFormat = "fewstep-features-1";

Json identity_json(const ImageSource& source, const EncoderIdentity& encoder) {
  return {{"format", kFeatureFormat},     {"version", kFeatureVersion}, {"encoder_sha256", encoder.sha256},
          {"pipeline", encoder.pipeline}, {"images", source.size()},    {"data_sha256", source.content_hash()}};
}

void write_cache(const fs::path& path, const Json& identity, const FeatureSet& set) {
  make_directories(path.parent_path());
  io::H5File file = io::H5File::create(path);
  file.write("features", set.features);
  if (set.logits.defined()) file.write("logits", set.logits);
  file.set_attribute("identity", identity.dump());
  file.set_attribute("constant", set.constant);
  file.set_attribute("grey", set.grey);
  file.commit();
}

FeatureSet read_cache(const fs::path& path, const Json& identity, int64_t images) {
  const io::H5File file = io::H5File::open(path);
  const auto wrong = [&](std::string_view what) {
    fail<DataError>("{}: {}; delete the file, it will be made again", path.string(), what);
  };
  if (!file.contains("features") || !file.has_attribute("identity")) wrong("not a file of features");
  const Json found = Json::parse(file.attribute_string("identity"), nullptr, false);
  if (found != identity)
    wrong(fmt::format("its features are of {}, wanted are those of {}", found.dump(), identity.dump()));
  FeatureSet set;
  set.features = file.read("features");
  if (set.features.dim() != 2 || set.features.size(0) != images)
    wrong(fmt::format("{} rows of features for {} images", set.features.size(0), images));
  if (file.contains("logits")) set.logits = file.read("logits");
  set.places = at::arange(images);
  set.constant = file.attribute_int("constant"), set.grey = file.attribute_int("grey");
  set.cached = true;
  return set;
}

int64_t sum_over_ranks(int64_t value, dist::World& world) {
  Tensor t = at::scalar_tensor(value, at::kLong).to(world.device()).view({1});
  world.all_reduce_sum(t);
  return t.item<int64_t>();
}

// This process's share, with the places in the whole source.
FeatureSet extract_share(const std::shared_ptr<const ImageSource>& source, const ImageEncoder& encoder,
                         const FeatureOptions& options, dist::World& world) {
  const auto R = static_cast<size_t>(world.size()), r = static_cast<size_t>(world.rank());
  const auto share = every(source, r, R);
  std::vector<Tensor> features, logits;
  const Extraction read = extract(*share, encoder,
                                  {.batch = options.batch,
                                   .threads = options.threads,
                                   .skip_unreadable = options.skip_unreadable,
                                   .label = options.label},
                                  [&](const Encoded& e) {
                                    features.push_back(e.features);
                                    if (e.logits.defined()) logits.push_back(e.logits);
                                  });
  FeatureSet set;
  std::vector<int64_t> places;
  for (size_t i = 0; i < share->size(); ++i)
    if (!std::binary_search(read.unreadable_places.begin(), read.unreadable_places.end(), i))
      places.push_back(static_cast<int64_t>(r + i * R));
  set.places = at::tensor(places, at::kLong);
  if (!features.empty()) set.features = at::cat(features);
  if (!logits.empty()) set.logits = at::cat(logits);
  set.constant = read.constant, set.grey = read.grey, set.unreadable = read.unreadable;
  return set;
}

FeatureSet extract_all(const std::shared_ptr<const ImageSource>& source, const ImageEncoder& encoder,
                       const FeatureOptions& options, dist::World& world) {
  if (source->size() < static_cast<size_t>(world.size()))
    fail<ConfigError>("{}: {} images for {} processes; start fewer", source->path(), source->size(), world.size());
  FeatureSet set;
  std::optional<Interrupted> stopped;
  try {
    set = extract_share(source, encoder, options, world);
  } catch (const Interrupted& e) {
    stopped = e;
  }
  // All stop together: none is left waiting in a collective.
  if (sum_over_ranks(stopped.has_value(), world) > 0)
    throw stopped ? *stopped : Interrupted("evaluation stopped by another process");
  set.unreadable_count = sum_over_ranks(static_cast<int64_t>(set.unreadable.size()), world);
  if (world.size() == 1) return set;
  const Tensor places = gather_rows(set.places, world);
  const Tensor order = places.argsort();
  set.features = gather_rows(set.features, world).index_select(0, order);
  if (set.logits.defined()) set.logits = gather_rows(set.logits, world).index_select(0, order);
  set.places = places.index_select(0, order);
  set.constant = sum_over_ranks(set.constant, world), set.grey = sum_over_ranks(set.grey, world);
  return set;
}

}  // namespace

Tensor gather_rows(const Tensor& rows, dist::World& world) {
  if (world.size() == 1) return rows;
  const std::vector<Tensor> counts =
      world.all_gather(at::scalar_tensor(rows.size(0), at::kLong).view({1}).to(world.device()));
  int64_t most = 0;
  for (const Tensor& count : counts) most = std::max(most, count.item<int64_t>());
  std::vector<int64_t> shape = rows.sizes().vec();
  shape[0] = most;
  const Tensor padded = at::zeros(shape, rows.options());
  padded.narrow(0, 0, rows.size(0)).copy_(rows);
  std::vector<Tensor> parts = world.all_gather(padded.to(world.device()));
  for (size_t i = 0; i < parts.size(); ++i) parts[i] = parts[i].narrow(0, 0, counts[i].item<int64_t>()).to(at::kCPU);
  return at::cat(parts);
}

FeatureSet compute_features(const std::shared_ptr<const ImageSource>& source, const ImageEncoder& encoder,
                            const FeatureOptions& options, dist::World& world) {
  const NoGrad no_grad;
  if (options.cache.empty()) return extract_all(source, encoder, options, world);
  const Json identity = identity_json(*source, encoder.identity());
  const fs::path path = options.cache / (sha256_hex(identity.dump()).substr(0, 16) + ".h5");
  // One rank looks: the others must not see a file that it has just written.
  const bool found = sum_over_ranks(world.is_main() && fs::exists(path), world) > 0;
  if (found) {
    log::info("{}: features of {} images read from {}", options.label, source->size(), path.string());
    return read_cache(path, identity, static_cast<int64_t>(source->size()));
  }
  FeatureSet set = extract_all(source, encoder, options, world);
  if (world.is_main() && set.unreadable_count == 0) write_cache(path, identity, set);
  world.barrier();
  return set;
}

}  // namespace fewstep::eval
