#include "src/pipelines/conditioner_class.h"

#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/text.h"
#include "src/models/json_fields.h"
#include "src/models/model.h"
#include "src/pipelines/components.h"
#include "src/tensor/ops.h"

namespace fewstep::pipelines {
namespace fs = std::filesystem;
namespace {

constexpr const char* kClassFolder = "class_embedding";

// Letters, digits and hyphens make words: "t-shirt" does not hold a "shirt".
std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  std::string word;
  for (const char c : to_lower(text) + " ") {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) || c == '-' || byte >= 0x80)
      word += c;
    else if (!word.empty())
      words.push_back(std::exchange(word, {}));
  }
  return words;
}

struct ClassMatch {
  int64_t label;
  size_t first, last;  // words [first, last)
};

std::vector<ClassMatch> class_matches(const std::vector<std::string>& class_names,
                                      const std::vector<std::string>& words) {
  std::vector<ClassMatch> found;
  for (size_t label = 0; label < class_names.size(); ++label) {
    const std::vector<std::string> name = words_of(class_names[label]);
    if (name.empty()) continue;
    for (auto it = std::search(words.begin(), words.end(), name.begin(), name.end()); it != words.end();
         it = std::search(it + 1, words.end(), name.begin(), name.end())) {
      const auto first = static_cast<size_t>(it - words.begin());
      found.push_back({static_cast<int64_t>(label), first, first + name.size()});
    }
  }
  return found;
}

}  // namespace

int64_t find_class(const std::vector<std::string>& class_names, std::string_view caption) {
  const std::vector<ClassMatch> found = class_matches(class_names, words_of(caption));
  int64_t label = -1;
  bool several = false;
  for (const ClassMatch& m : found) {
    const bool inside = std::any_of(found.begin(), found.end(), [&](const ClassMatch& other) {
      return other.first <= m.first && m.last <= other.last && other.last - other.first > m.last - m.first;
    });
    if (inside) continue;
    several = several || (label >= 0 && label != m.label);
    label = m.label;
  }
  if (label < 0 || several)
    fail<ConfigError>("\"{}\": this model knows classes, and {} is named; write one of: {}", caption,
                      several ? "more than one" : "none", fmt::join(class_names, ", "));
  return label;
}

ClassConditioner::ClassConditioner(const ConditioningSettings& settings, std::vector<std::string> class_names,
                                   std::unique_ptr<models::LabelEmbedding> embedding)
    : Conditioner(settings), class_names_(std::move(class_names)), embedding_(std::move(embedding)) {
  FEW_CHECK(static_cast<int64_t>(class_names_.size()) == embedding_->config().num_classes,
            "{} class names, {} embeddings", class_names_.size(), embedding_->config().num_classes);
  if (settings_.null_text != NullValue::zeros) fail<ConfigError>("conditioner class: null_text can only be 'zeros'");
}

std::string ClassConditioner::description() const {
  return fmt::format("a table of {} classes (width {}, {} numbers)", class_names_.size(), context_width(), numbers());
}
int64_t ClassConditioner::context_width() const { return embedding_->config().dim; }

void ClassConditioner::to(at::Device device) {
  device_ = device;
  embedding_->to(device);
}

Conditioner::Encoded ClassConditioner::encode(const ConditionInput& input) const {
  Tensor labels = input.labels;
  if (!labels.defined()) {
    std::vector<int64_t> found;
    for (const std::string& caption : input.captions) found.push_back(find_class(class_names_, caption));
    labels = at::tensor(found, at::kLong);
  }
  const auto known = static_cast<int64_t>(class_names_.size());
  // On a GPU the look at the values would wait for it in every step; there the table's own check stops the run.
  if (const Tensor wrong = labels.lt(0).logical_or(labels.ge(known)); labels.is_cpu() && wrong.any().item<bool>())
    fail<DataError>(
        "label {}: this model knows the classes 0 ... {}; the data set needs labels (or use conditioner text)",
        labels.masked_select(wrong)[0].item<int64_t>(), known - 1);
  return {(*embedding_)(labels.to(device_)), {}};
}

Conditioner::Encoded ClassConditioner::encode_empty() const {
  return {at::zeros({1, 1, context_width()}, at::TensorOptions().device(device_)), {}};
}

void ClassConditioner::save_components(const fs::path& folder) const {
  models::save_model(folder / kClassFolder, *embedding_, embedding_->config().to_json());
}
Json ClassConditioner::own_config() const { return {{"class_names", class_names_}}; }
Json ClassConditioner::index_entries() const {
  return {{"conditioner", {"fewstep", "ClassConditioner"}}, {kClassFolder, {"fewstep", "LabelEmbedding"}}};
}

void ClassConditionerConfig::describe(config::Visitor& v) {
  v.field("dim", dim, "width of a class's token", config::kAtLeastOne);
  describe_settings(v, settings, /*with_text=*/false);
}

std::unique_ptr<Conditioner> ClassConditionerConfig::build(const ConditionerStart& start) const {
  if (start.class_names.empty())
    fail<ConfigError>("conditioner class: the data set has no classes; take kind text, or data with labels");
  models::LabelEmbeddingConfig config;
  config.num_classes = static_cast<int64_t>(start.class_names.size()), config.dim = dim;
  auto embedding = std::make_unique<models::LabelEmbedding>(config);
  embedding->initialise(start.seed);
  return std::make_unique<ClassConditioner>(settings, start.class_names, std::move(embedding));
}

std::unique_ptr<Conditioner> load_class_conditioner(const fs::path& folder, const Json& config,
                                                    const ConditioningSettings& settings) {
  const models::JsonDataFields fields(config, (folder / "conditioner" / "conditioner_config.json").string());
  const auto names = fields.value("class_names", std::vector<std::string>());
  if (names.empty()) fail<DataError>("{}: the conditioner names no classes (class_names)", folder.string());
  auto embedding = load_frozen_component<models::LabelEmbedding>(folder / kClassFolder, "LabelEmbedding");
  if (embedding->config().num_classes != static_cast<int64_t>(names.size()))
    fail<DataError>("{}: {} class names for {} embeddings", folder.string(), names.size(),
                    embedding->config().num_classes);
  return std::make_unique<ClassConditioner>(settings, names, std::move(embedding));
}

}  // namespace fewstep::pipelines
