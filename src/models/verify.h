// `fewstep model verify` as a function: runs a golden folder and compares tensor by tensor.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "src/tensor/tensor.h"

namespace fewstep::models {

struct VerifyOptions {
  bool all = false;             // an expected tensor that is not produced fails
  std::optional<double> limit;  // instead of both built-in limits
};
enum class Verdict { ok, fail, not_produced, skipped };  // skipped: diagnostics (*_margin, *_gap)
struct VerifyLine {
  std::string name;
  double max_abs = 0, max_over_rms = 0;  // max|difference| and that over max(rms of expected, 1e-6)
  Verdict verdict = Verdict::ok;
};
struct VerifyReport {
  std::vector<VerifyLine> lines;
  bool passed = true;
};
// One tensor against its expectation. Integers must be equal; gradients (names "grad*") have a wider limit.
VerifyLine compare(const std::string& name, const Tensor& expected, const Tensor& actual, std::optional<double> limit = {});
VerifyReport verify_model(const std::filesystem::path& folder, const VerifyOptions& options = {});
// A tokenizer: a folder with expected.json and the tokenizer's files. Called by verify_model for such folders.
VerifyReport verify_tokenizer(const std::filesystem::path& folder, const VerifyOptions& options);
std::string to_text(const VerifyReport& report);  // one aligned line a tensor: name max_abs max_over_rms verdict

}  // namespace fewstep::models
