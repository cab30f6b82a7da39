#include "eval/run_report.h"

#include <algorithm>

#include "eval/report.h"
#include "src/base/files.h"
#include "src/base/hash.h"

namespace fewstep::eval {
namespace fs = std::filesystem;
namespace {

constexpr size_t kPictures = 4;  // the latest, newest first

ReportSection samples_section(const fs::path& folder) {
  ReportSection section{.heading = "Samples"};
  std::vector<fs::path> pictures;
  if (fs::exists(folder))
    for (const auto& entry : fs::directory_iterator(folder))
      if (entry.path().extension() == ".png") pictures.push_back(entry.path());
  std::sort(pictures.rbegin(), pictures.rend());
  pictures.resize(std::min(pictures.size(), kPictures));
  for (const fs::path& picture : pictures) section.figures.push_back({read_text(picture), picture.stem().string()});
  return section;
}

}  // namespace

void write_run_report(const fs::path& run) {
  const std::string config = read_text(run / "config.yaml");
  Report report{.title = run.filename().string(), .subtitle = "training run"};
  if (ReportSection samples = samples_section(run / "samples"); !samples.figures.empty()) report.sections.push_back(std::move(samples));
  report.sections.push_back(training_section(std::span(&run, 1)));
  report.provenance = collect_provenance();
  report.provenance.emplace_back("config", (run / "config.yaml").string());
  report.provenance.emplace_back("config SHA-256", sha256_hex(config));
  write_report(run / "report.html", report);
}

}  // namespace fewstep::eval
