// Frozen components of a model folder, passed on from one to the next.
#pragma once
#include <filesystem>
#include <memory>
#include <string>

#include "src/base/error.h"
#include "src/models/model.h"

namespace fewstep::pipelines {

// The network of `folder` as a T, without gradients, in eval mode. ConfigError when it is another kind.
template <class T>
std::unique_ptr<T> load_frozen_component(const std::filesystem::path& folder, const char* expected) {
  std::unique_ptr<nn::Module> module = models::load_model(folder);
  auto* typed = dynamic_cast<T*>(module.get());
  if (!typed) fail<ConfigError>("{}: another network than {}", folder.string(), expected);
  module.release();
  typed->requires_grad(false);
  return std::unique_ptr<T>(typed);
}

// Every file of from/name as to/name: hard links (checkpoints of one run share the frozen weights), copies on another
// device. DataError when it is gone or cannot be written. Nothing when both are the same folder.
void link_component(const std::filesystem::path& from, const std::filesystem::path& to, const std::string& name);

}  // namespace fewstep::pipelines
