// The report of one training run: its curves, its latest samples, where it came from.
#pragma once
#include <filesystem>

namespace fewstep::eval {

// Reads config.yaml, metrics.jsonl and samples/ of the run and writes <run>/report.html.
void write_run_report(const std::filesystem::path& run);

}  // namespace fewstep::eval
