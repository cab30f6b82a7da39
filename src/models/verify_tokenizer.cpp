// `fewstep model verify` of a tokenizer: expected.json holds texts and what the reference made of them; every list is
// exact.
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/models/json_fields.h"
#include "src/models/verify.h"
#include "src/text/clip_tokenizer.h"

namespace fewstep::models {
namespace {

using text::ClipCleaning;

// One line for a list: how many entries differ.
VerifyLine line_of(const std::string& name, const Json& expected, const std::vector<Json>& actual) {
  VerifyLine line{.name = name};
  if (!expected.is_array()) fail<DataError>("expected.json: '{}' is not a list", name);
  int64_t different = std::abs(static_cast<int64_t>(expected.size()) - static_cast<int64_t>(actual.size()));
  for (size_t i = 0; i < std::min(expected.size(), actual.size()); ++i) different += expected[i] != actual[i];
  line.max_abs = static_cast<double>(different);
  line.max_over_rms = expected.empty() ? 0 : line.max_abs / static_cast<double>(expected.size());
  line.verdict = different == 0 ? Verdict::ok : Verdict::fail;
  return line;
}

std::map<std::string, std::vector<Json>> clip_outputs(const text::ClipTokenizer& tokenizer,
                                                      const std::vector<std::string>& texts, const Json& expected) {
  std::map<std::string, std::vector<Json>> out;
  for (const std::string& text : texts) {
    const auto ids = tokenizer.encode(text);
    std::vector<int64_t> whole = {tokenizer.start_id()};
    whole.insert(whole.end(), ids.begin(), ids.end());
    whole.push_back(tokenizer.end_id());
    out["cases.ids"].push_back(whole);
    out["cases.decoded"].push_back(tokenizer.decode(ids));
    out["open_clip_ids_no_special"].push_back(tokenizer.encode(text, ClipCleaning::open_clip));
  }
  if (const auto rows = expected.find("padded77_rows_first5"); rows != expected.end())
    for (size_t i = 0; i < std::min(rows->size(), texts.size()); ++i)
      out["padded77_rows_first5"].push_back(tokenizer.encode_padded(texts[i]).ids);
  return out;
}

}  // namespace

VerifyReport verify_tokenizer(const std::filesystem::path& folder, const VerifyOptions& options) {
  const Json expected = read_json(folder / "expected.json");
  const std::filesystem::path config_path = folder / "tokenizer_config.json";
  const std::string kind =
      std::filesystem::exists(config_path) ? JsonFields(read_json(config_path), config_path.string()).value("tokenizer_class", "") : "";
  if (kind != "CLIPTokenizer" && kind != "CLIPTokenizerFast")
    fail<ConfigError>("{}: tokenizer_class is '{}'; known: CLIPTokenizer", config_path.string(), kind);
  const auto cases = expected.find("cases");
  if (cases == expected.end() || !cases->is_array())
    fail<DataError>("{}: no list 'cases'", (folder / "expected.json").string());

  std::map<std::string, Json> lists;
  std::vector<std::string> texts;
  for (const Json& entry : *cases) {
    texts.push_back(entry.at("text").get<std::string>());
    for (const char* key : {"ids", "decoded"}) lists[std::string("cases.") + key].push_back(entry.at(key));
  }
  for (const auto& [key, value] : expected.items())
    if (value.is_array() && key != "cases") lists[key] = value;

  const auto produced = clip_outputs(text::ClipTokenizer::load(folder), texts, expected);
  VerifyReport report;
  for (const auto& [name, list] : lists) {
    const auto it = produced.find(name);
    const VerifyLine line = it != produced.end() ? line_of(name, list, it->second)
                                                 : VerifyLine{.name = name, .verdict = Verdict::not_produced};
    report.passed =
        report.passed && line.verdict != Verdict::fail && !(options.all && line.verdict == Verdict::not_produced);
    report.lines.push_back(line);
  }
  return report;
}

}  // namespace fewstep::models
