// libFuzzer target of the config reader (tools/fuzz.sh). The first byte says how to cut the input into a file and
// overrides. Whatever is accepted must be written in a form that reads back to the same text.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "src/base/error.h"
#include "tests/config/sample.h"

using fewstep::ConfigError;
using fewstep::config::parse;
using fewstep::config::to_yaml;
using fewstep::sample::Sample;

namespace {

void round_trip(Sample& run) {
  const std::string once = to_yaml(run);
  Sample again = parse<Sample>(once, "written");  // a ConfigError here is a finding
  const std::string twice = to_yaml(again);
  if (once == twice) return;
  std::fprintf(stderr, "not the same after reading back:\n%s----\n%s", once.c_str(), twice.c_str());
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  if (size == 0) return 0;
  std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  std::vector<std::string> overrides;
  for (int n = data[0] % 3; n > 0; --n) {
    const size_t cut = text.rfind('\n');
    if (cut == std::string::npos) break;
    overrides.push_back(text.substr(cut + 1));
    text.resize(cut);
  }
  Sample run;
  try {
    if (overrides.empty()) {
      run = parse<Sample>(text, "fuzz");
    } else {
      // Overrides come with files only; a file in memory keeps this fast. `base:` would read whatever it names.
      if (text.find("base") != std::string::npos) return 0;
      static const std::string path = "/dev/shm/fewstep_fuzz_" + std::to_string(std::rand()) + ".yaml";
      std::ofstream(path, std::ios::binary) << text;
      run = fewstep::config::load<Sample>(path, overrides);
    }
  } catch (const ConfigError&) {
    return 0;
  }
  round_trip(run);
  return 0;
}
