#include "eval/statistics_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/hash.h"
#include "src/base/json.h"
#include "src/base/log.h"
#include "src/base/text.h"
#include "src/io/hdf5.h"
#include "src/io/npz.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace {

namespace fs = std::filesystem;
constexpr const char* kStatisticsFormat = "fewstep-feature-statistics-2";

Json to_json(const Provenance& p) {
  return {{"format", kStatisticsFormat}, {"encoder_sha256", p.encoder_sha256},
          {"pipeline", p.pipeline},      {"data_sha256", p.data_sha256},
          {"version", p.version},        {"count", p.count}};
}
Provenance provenance_of(const fs::path& path, const Json& json) {
  try {
    const auto text = [&](const char* key) { return json.value(key, std::string()); };
    return {text("encoder_sha256"), text("pipeline"), text("data_sha256"), text("version"),
            json.value("count", int64_t{0})};
  } catch (const nlohmann::json::exception& e) {
    fail<DataError>("{}: its provenance cannot be read: {}", path.string(), e.what());
  }
}

// Of float64 mean [D] and covariance or scatter [D, D].
void check_moments(const fs::path& path, const Tensor& mean, const Tensor& matrix) {
  if (mean.dim() != 1 || matrix.sizes() != at::IntArrayRef({mean.size(0), mean.size(0)}))
    fail<DataError>("{}: expected a mean [D] and a matrix [D, D], found {} and {} dimensions", path.string(),
                    mean.dim(), matrix.dim());
  if (!at::isfinite(mean).all().item<bool>() || !at::isfinite(matrix).all().item<bool>())
    fail<NumericError>("{}: statistics that are not finite", path.string());
  const double scale = matrix.abs().max().item<double>();
  if ((matrix - matrix.t()).abs().max().item<double>() > 1e-6 * scale)
    fail<DataError>("{}: the covariance is not symmetric", path.string());
}

StatisticsFile load_npz(const fs::path& path) {
  const TensorMap arrays = io::read_npz(path);
  for (const char* name : {"mu", "sigma"})
    if (!arrays.contains(name))
      fail<DataError>("{}: no array '{}'; pytorch-fid and clean-fid keep mu and sigma", path.string(), name);
  const Tensor mean = arrays.at("mu").to(at::kDouble), covariance = arrays.at("sigma").to(at::kDouble);
  check_moments(path, mean, covariance);
  StatisticsFile out;
  if (const auto it = arrays.find("provenance"); it != arrays.end()) {
    const Tensor bytes = it->second.contiguous();
    const Json json = Json::parse(
        std::string(static_cast<const char*>(bytes.data_ptr()), static_cast<size_t>(bytes.numel())), nullptr, false);
    if (json.is_object()) out.provenance = provenance_of(path, json);
  }
  if (const auto it = arrays.find("n"); it != arrays.end() && it->second.numel() == 1)
    out.provenance.count = it->second.to(at::kLong).item<int64_t>();
  out.statistics = FeatureStatistics::from_moments(mean, covariance, out.provenance.count);
  return out;
}

StatisticsFile load_h5(const fs::path& path) {
  const io::H5File file = io::H5File::open(path);
  if (!file.contains("mean") || !file.contains("covariance") || !file.has_attribute("provenance"))
    fail<DataError>("{}: not a file of feature statistics (mean, covariance, provenance)", path.string());
  const Json json = Json::parse(file.attribute_string("provenance"), nullptr, false);
  if (!json.is_object() || json.value("format", "") != kStatisticsFormat)
    fail<DataError>("{}: its provenance is not of the format {}", path.string(), kStatisticsFormat);
  const Tensor mean = file.read("mean").to(at::kDouble), covariance = file.read("covariance").to(at::kDouble);
  check_moments(path, mean, covariance);
  const Provenance p = provenance_of(path, json);
  return {FeatureStatistics::from_moments(mean, covariance, p.count), p};
}

}  // namespace

bool is_statistics_name(const fs::path& path) { return path.extension() == ".h5" || path.extension() == ".npz"; }

void save_statistics(const fs::path& path, const FeatureStatistics& statistics, const Provenance& given) {
  Provenance p = given;
  p.version = kFeatureVersion, p.count = statistics.count();
  const Tensor mean = statistics.mean(), covariance = statistics.covariance();
  const std::string text = to_json(p).dump();
  if (path.extension() == ".npz") {
    const Tensor bytes = at::empty({static_cast<int64_t>(text.size())}, at::kByte);
    std::copy(text.begin(), text.end(), static_cast<uint8_t*>(bytes.data_ptr()));
    io::write_npz(
        path,
        {{"mu", mean}, {"sigma", covariance}, {"n", at::scalar_tensor(p.count, at::kLong)}, {"provenance", bytes}});
    return;
  }
  if (path.extension() != ".h5") fail<ConfigError>("{}: statistics are kept in .h5 or .npz files", path.string());
  io::H5File file = io::H5File::create(path);
  file.write("mean", mean);
  file.write("covariance", covariance);
  file.set_attribute("provenance", text);
  file.commit();
}

StatisticsFile load_statistics(const fs::path& path) {
  return path.extension() == ".npz" ? load_npz(path) : load_h5(path);
}

void check_provenance(const fs::path& path, const Provenance& p, const EncoderIdentity& encoder, bool force) {
  std::string reason;
  if (p.encoder_sha256.empty())
    reason = "it does not say which weights and which image pipeline it was made with";
  else if (p.encoder_sha256 != encoder.sha256)
    reason = fmt::format("made with the weights {}, the encoder has {}", p.encoder_sha256.substr(0, 8),
                         encoder.sha256.substr(0, 8));
  else if (p.pipeline != encoder.pipeline)
    reason = fmt::format("made with the image pipeline '{}', the encoder uses '{}'", p.pipeline, encoder.pipeline);
  else if (p.version != kFeatureVersion)
    reason = fmt::format("made by the feature code '{}', this is '{}'", p.version, kFeatureVersion);
  if (reason.empty()) return;
  if (!force)
    fail<ConfigError>("{}: {}; a distance needs one encoder and one pipeline (--force: use it all the same)",
                      path.string(), reason);
  log::warn("{}: {}; used all the same", path.string(), reason);
}

}  // namespace fewstep::eval
