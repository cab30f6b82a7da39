#include "eval/results.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <ATen/Parallel.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/text.h"
#include "src/base/version.h"

namespace fewstep::eval {
namespace {

Json value_json(const Value& v) {
  Json j = {{"value", v.value}, {"ci95", v.ci95}, {"n", v.n}};
  if (std::isfinite(v.floor)) j["floor"] = v.floor;
  if (!v.note.empty()) j["note"] = v.note;
  return j;
}

Json latency_json(const Latency& l) {
  Json j = {{"p50", l.p50}, {"p95", l.p95}, {"batch", l.batch}, {"runs", l.runs}, {"warmup", l.warmup}};
  if (l.inner_p50 > 0) j["inner_p50"] = l.inner_p50;
  if (l.p90 > 0) j["p90"] = l.p90, j["p99"] = l.p99, j["first"] = l.first, j["load"] = l.load;
  if (l.peak_memory > 0) j["peak_memory_bytes"] = l.peak_memory;
  return j;
}

Json row_json(const ResultRow& row) {
  Json j = {{"label", row.label}, {"metrics", Json::object()}};
  for (const auto& [name, value] : row.metrics) j["metrics"][name] = value_json(value);
  if (row.latency.runs > 0) j["seconds"] = latency_json(row.latency);
  if (row.latency_ar.runs > 0) j["seconds_ar"] = latency_json(row.latency_ar);
  if (row.steps > 0) j["steps"] = row.steps;
  if (row.nfe > 0) j["nfe"] = row.nfe;
  if (row.step_compression > 0) j["step_compression"] = row.step_compression;
  if (row.tflop > 0) j["tflop"] = row.tflop;
  j["seeds"] = row.seeds;
  if (!row.protocol.empty()) j["protocol"] = row.protocol;
  return j;
}

// The typed member, or DataError with the path of the key.
template <class T>
T member(const Json& object, const char* key, const std::string& where) {
  const auto it = object.find(key);
  if (it == object.end()) fail<DataError>("{}: key '{}' is missing", where, key);
  try {
    return it->get<T>();
  } catch (const nlohmann::json::exception&) {
    fail<DataError>("{}: key '{}' has the wrong type ({})", where, key, it->type_name());
  }
}

Value value_from(const Json& j, const std::string& where) {
  Value v{.value = member<double>(j, "value", where),
          .ci95 = member<double>(j, "ci95", where),
          .n = member<int64_t>(j, "n", where)};
  if (j.contains("floor")) v.floor = member<double>(j, "floor", where);
  if (j.contains("note")) v.note = member<std::string>(j, "note", where);
  return v;
}

Latency latency_from(const Json& j, const std::string& where) {
  Latency l{.p50 = member<double>(j, "p50", where),
            .p95 = member<double>(j, "p95", where),
            .batch = member<int64_t>(j, "batch", where),
            .runs = member<int64_t>(j, "runs", where),
            .warmup = member<int64_t>(j, "warmup", where)};
  if (j.contains("inner_p50")) l.inner_p50 = member<double>(j, "inner_p50", where);
  if (j.contains("p90")) {
    l.p90 = member<double>(j, "p90", where), l.p99 = member<double>(j, "p99", where);
    l.first = member<double>(j, "first", where), l.load = member<double>(j, "load", where);
  }
  if (j.contains("peak_memory_bytes")) l.peak_memory = member<int64_t>(j, "peak_memory_bytes", where);
  return l;
}

ResultRow row_from(const Json& j, const std::string& where) {
  ResultRow row;
  row.label = member<std::string>(j, "label", where);
  const Json metrics = member<Json>(j, "metrics", where);
  for (const auto& [name, value] : metrics.items())
    row.metrics[name] = value_from(value, fmt::format("{}.metrics.{}", where, name));
  if (j.contains("seconds")) row.latency = latency_from(j["seconds"], where + ".seconds");
  if (j.contains("seconds_ar")) row.latency_ar = latency_from(j["seconds_ar"], where + ".seconds_ar");
  if (j.contains("steps")) row.steps = member<double>(j, "steps", where);
  if (j.contains("nfe")) row.nfe = member<double>(j, "nfe", where);
  if (j.contains("step_compression")) row.step_compression = member<double>(j, "step_compression", where);
  if (j.contains("tflop")) row.tflop = member<double>(j, "tflop", where);
  row.seeds = member<std::vector<int64_t>>(j, "seeds", where);
  if (j.contains("protocol")) row.protocol = member<std::string>(j, "protocol", where);
  return row;
}

std::string cpu_model() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) return std::string(trim(std::string_view(line).substr(line.find(':') + 1)));
  return "unknown";
}

}  // namespace

Json to_json(const Results& results) {
  Json j = {{"name", results.name}, {"protocol", results.protocol}, {"rows", Json::array()}};
  for (const ResultRow& row : results.rows) j["rows"].push_back(row_json(row));
  if (results.qualification) j["qualification"] = qualification_json(*results.qualification);
  j["encoders"] = Json::array();
  for (const EncoderIdentity& e : results.encoders) j["encoders"].push_back({{"name", e.name}, {"sha256", e.sha256}});
  j["provenance"] = Json::object();
  for (const auto& [key, value] : results.provenance) j["provenance"][key] = value;
  return j;
}

Results results_from_json(const Json& json, std::string_view where) {
  const std::string at(where);
  if (!json.is_object()) fail<DataError>("{}: expected an object, got {}", at, json.type_name());
  Results results{.name = member<std::string>(json, "name", at),
                  .protocol = member<std::string>(json, "protocol", at),
                  .rows = {},
                  .provenance = {}};
  const Json provenance = member<Json>(json, "provenance", at);
  for (const auto& [key, value] : provenance.items())
    results.provenance.emplace_back(key, value.is_string() ? value.get<std::string>() : value.dump());
  const Json encoders = json.value("encoders", Json::array());
  for (const Json& e : encoders)
    results.encoders.push_back(
        {member<std::string>(e, "name", at + ": encoders"), member<std::string>(e, "sha256", at + ": encoders")});
  if (json.contains("qualification")) {
    try {
      results.qualification = qualification_from_json(json["qualification"]);
    } catch (const nlohmann::json::exception& e) {
      fail<DataError>("{}: key 'qualification': {}", at, e.what());
    }
  }
  const Json rows = member<Json>(json, "rows", at);
  if (!rows.is_array()) fail<DataError>("{}: key 'rows' is no list", at);
  for (size_t i = 0; i < rows.size(); ++i)
    results.rows.push_back(row_from(rows[i], fmt::format("{}: rows[{}]", at, i)));
  return results;
}

void save_results(const std::filesystem::path& path, const Results& results) {
  for (const ResultRow& row : results.rows)
    for (const auto& [name, value] : row.metrics) {
      check_metric_name(name, results.encoders);
      if (!std::isfinite(value.value))
        fail<NumericError>("{}: {} of '{}' is {}", path.string(), name, row.label, value.value);
    }
  write_json(path, to_json(results));
}

Results load_results(const std::filesystem::path& path) { return results_from_json(read_json(path), path.string()); }

Facts collect_provenance() {
  utsname host{};
  uname(&host);
  const char* wait_policy = std::getenv("OMP_WAIT_POLICY");
  return {{"fewstep", kVersion},
          {"commit", build_commit()},
          {"date", utc_timestamp()},
          {"host", host.nodename},
          {"cpu", fmt::format("{} ({} cores)", cpu_model(), sysconf(_SC_NPROCESSORS_ONLN))},
          {"threads", std::to_string(at::get_num_threads())},
          {"omp_wait_policy", wait_policy ? wait_policy : "default"}};
}

std::string format_number(double value) {
  if (!std::isfinite(value)) return "-";
  if (value == 0) return "0";
  const double size = std::abs(value);
  if (size >= 1000) return fmt::format("{:.0f}", value);
  if (size >= 100) return fmt::format("{:.1f}", value);
  if (size >= 10) return fmt::format("{:.2f}", value);
  if (size >= 0.01) return fmt::format("{:.3f}", value);
  return fmt::format("{:.2e}", value);
}

std::string format_value(const Value& v) {
  if (!std::isfinite(v.value)) return "-";
  if (v.ci95 <= 0) return format_number(v.value);
  // Two digits of the interval: more would be noise.
  const int decimals = std::clamp(1 - static_cast<int>(std::floor(std::log10(v.ci95))), 0, 6);
  return fmt::format("{:.{}f} \u00b1 {:.{}f}", v.value, decimals, v.ci95, decimals);
}

std::vector<std::string> metric_names(const std::vector<ResultRow>& rows) {
  std::vector<std::string> names;
  for (const ResultRow& row : rows)
    for (const auto& [name, value] : row.metrics)
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  return names;
}

}  // namespace fewstep::eval
