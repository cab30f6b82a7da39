// Conditioning on a class: one context token from a learned table.
#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "src/models/label_embedding.h"
#include "src/pipelines/conditioner.h"

namespace fewstep::pipelines {

// The one class whose name stands in `caption`, in whole words of any case ("a dark long dress", "Ankle Boots" is
// none). A name inside a longer one that is there, too, does not count. ConfigError with the classes when there is
// none, or several.
int64_t find_class(const std::vector<std::string>& class_names, std::string_view caption);

class ClassConditioner : public Conditioner {
 public:
  ClassConditioner(const ConditioningSettings& settings, std::vector<std::string> class_names,
                   std::unique_ptr<models::LabelEmbedding> embedding);
  std::string_view kind() const override { return "class"; }
  std::string description() const override;
  int64_t context_width() const override;
  int64_t pooled_width() const override { return 0; }
  int64_t context_length() const override { return 1; }
  nn::Module* trainable() override { return embedding_.get(); }
  void to(at::Device device) override;
  const std::vector<std::string>& class_names() const override { return class_names_; }
  Json index_entries() const override;

 protected:
  Encoded encode(const ConditionInput& input) const override;
  Encoded encode_empty() const override;
  void save_components(const std::filesystem::path& model_folder) const override;
  Json own_config() const override;

 private:
  std::vector<std::string> class_names_;
  std::unique_ptr<models::LabelEmbedding> embedding_;
  at::Device device_ = at::kCPU;
};

struct ClassConditionerConfig : ConditionerConfig {
  int64_t dim = 128;
  ConditioningSettings settings = {};
  std::string_view kind() const override { return "class"; }
  void describe(config::Visitor& v) override;
  std::unique_ptr<Conditioner> build(const ConditionerStart& start) const override;  // ConfigError without classes
};
std::unique_ptr<Conditioner> load_class_conditioner(const std::filesystem::path& model_folder, const Json& config,
                                                    const ConditioningSettings& settings);

}  // namespace fewstep::pipelines
