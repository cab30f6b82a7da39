#include "src/models/verify.h"

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/io/safetensors.h"
#include "src/models/model.h"
#include "src/tensor/ops.h"

namespace fewstep::models {
namespace {

constexpr double kOutputLimit = 1e-4, kGradientLimit = 5e-4, kSmallestRms = 1e-6;

struct GoldenCase {
  TensorMap inputs, expected;
  Json arguments = Json::object();
};

GoldenCase read_case(const std::filesystem::path& folder) {
  GoldenCase out;
  for (auto& [name, tensor] : io::Safetensors(folder / "io.safetensors").all()) {
    const std::string_view n = name;
    if (n.starts_with("input.")) out.inputs[std::string(n.substr(6))] = tensor;
    if (n.starts_with("expected.")) out.expected[std::string(n.substr(9))] = tensor;
  }
  if (out.expected.empty()) fail<DataError>("{}: no tensor named 'expected.*'", (folder / "io.safetensors").string());
  if (std::filesystem::exists(folder / "case.json")) out.arguments = read_json(folder / "case.json");
  return out;
}

bool is_gradient(std::string_view name) { return name.starts_with("grad"); }
bool is_diagnostic(std::string_view name) { return name.ends_with("_margin") || name.ends_with("_gap"); }

std::string_view word(Verdict verdict) {
  switch (verdict) {
    case Verdict::ok: return "ok";
    case Verdict::fail: return "FAIL";
    case Verdict::not_produced: return "not produced";
    case Verdict::skipped: return "not checked";
  }
  return "?";
}

}  // namespace

VerifyLine compare(const std::string& name, const Tensor& expected, const Tensor& actual, std::optional<double> limit) {
  VerifyLine line{.name = name};
  const double inf = std::numeric_limits<double>::infinity();
  const bool exact = !expected.is_floating_point();
  if (expected.sizes() != actual.sizes() || (exact && actual.is_floating_point())) {
    line.max_abs = line.max_over_rms = inf;
    line.verdict = Verdict::fail;
    return line;
  }
  if (expected.numel() == 0) return line;
  const Tensor want = expected.to(at::kDouble), have = actual.to(at::kCPU, at::kDouble);
  line.max_abs = (want - have).abs().max().item<double>();
  line.max_over_rms = line.max_abs / std::max(want.square().mean().sqrt().item<double>(), kSmallestRms);
  const double allowed = exact ? 0.0 : limit.value_or(is_gradient(name) ? kGradientLimit : kOutputLimit);
  // A difference that is not a number fails every comparison.
  line.verdict = (exact ? expected.equal(actual.to(at::kCPU, expected.scalar_type())) : line.max_over_rms <= allowed) ? Verdict::ok : Verdict::fail;
  return line;
}

VerifyReport verify_model(const std::filesystem::path& folder, const VerifyOptions& options) {
  if (std::filesystem::exists(folder / "expected.json")) return verify_tokenizer(folder, options);
  const std::filesystem::path config_path = folder / "config.json";
  if (!std::filesystem::exists(config_path))
    fail<DataError>("{}: not a golden folder of a network: there is no config.json", folder.string());
  const Json config = read_json(config_path);
  const ModelKind& kind = find_model_kind(config, config_path.string());
  const GoldenCase golden = read_case(folder);
  const bool gradients = std::any_of(golden.expected.begin(), golden.expected.end(), [](const auto& e) { return is_gradient(e.first); });
  const std::unique_ptr<nn::Module> module = load_model(folder);
  const TensorMap produced = kind.reference_outputs(*module, golden.inputs, golden.arguments, gradients);

  VerifyReport report;
  for (const auto& [name, expected] : golden.expected) {
    const auto it = produced.find(name);
    VerifyLine line{.name = name, .verdict = Verdict::not_produced};
    if (is_diagnostic(name))
      line.verdict = Verdict::skipped;
    else if (it != produced.end())
      line = compare(name, expected, it->second, options.limit);
    report.passed = report.passed && line.verdict != Verdict::fail && !(options.all && line.verdict == Verdict::not_produced);
    report.lines.push_back(line);
  }
  return report;
}

std::string to_text(const VerifyReport& report) {
  size_t width = 0;
  for (const VerifyLine& line : report.lines) width = std::max(width, line.name.size());
  std::string out;
  for (const VerifyLine& line : report.lines) {
    const bool measured = line.verdict == Verdict::ok || line.verdict == Verdict::fail;
    out += measured ? fmt::format("{:<{}}  {:9.3e}  {:9.3e}  {}\n", line.name, width, line.max_abs, line.max_over_rms, word(line.verdict))
                    : fmt::format("{:<{}}  {:>9}  {:>9}  {}\n", line.name, width, "-", "-", word(line.verdict));
  }
  return out;
}

}  // namespace fewstep::models
