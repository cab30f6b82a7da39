// Small models with random weights, written as a user's folders are.
#pragma once
#include <filesystem>

namespace fewstep::support {

// An autoregressive pipeline of 8 x 8 codes of 16, for pictures of 32 x 32 grey pixels.
void write_small_pipeline(const std::filesystem::path& folder);
// A CLIPModel for 32 x 32 pixels beside its tokenizer, whose files lie in `vocabulary`.
void write_small_clip(const std::filesystem::path& folder, const std::filesystem::path& vocabulary);

}  // namespace fewstep::support
