// Names of tensors in the single-file checkpoints of Stability AI (sgm and ldm; the text tower of open_clip) and in diffusers'
// folders, as tables of modules. Verified complete and one to one on the full-size networks (tests/models/stability_test.cpp).
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace fewstep::models {

// Pairs of module names (or names of tensors); a tensor's name is renamed by the longest pair that is a prefix of it and ends at
// a dot.
class NameTable {
 public:
  void add(const std::string& ours, const std::string& theirs);
  std::optional<std::string> theirs(std::string_view ours) const;  // nothing: no pair is a prefix
  std::optional<std::string> ours(std::string_view theirs) const;

 private:
  std::unordered_map<std::string, std::string> to_theirs_, to_ours_;
};

// UNet2DConditionModel <-> sgm's UNetModel, without the prefix "model.diffusion_model.".
struct UnetNames {
  int64_t levels = 0, layers_per_block = 0;
  std::vector<bool> up_attention = {};  // of up_blocks.i: the upsampler stands behind it
  // Told from the names; DataError naming `where` when they are no such network's.
  static UnetNames from_ours(const std::vector<std::string>& names, std::string_view where);
  static UnetNames from_theirs(const std::vector<std::string>& names, std::string_view where);
  NameTable table() const;
};

// AutoencoderKL <-> ldm's AutoencoderKL, without "first_stage_model.". Attention is linear here, a 1 x 1 convolution there.
struct VaeNames {
  int64_t levels = 0, layers_per_block = 0;
  static VaeNames from_ours(const std::vector<std::string>& names, std::string_view where);
  static VaeNames from_theirs(const std::vector<std::string>& names, std::string_view where);
  NameTable table() const;
};
// "query", "key", "value", "proj_attn" of diffusers before 0.12 -> today's names.
std::string modern_vae_name(const std::string& name);

// CLIPTextModelWithProjection <-> the text tower of open_clip, without "conditioner.embedders.1.model.". The packed
// attn.in_proj_{weight,bias} (rows of query, key, value) and the transposed text_projection are not in it.
NameTable open_clip_names(int64_t layers);

}  // namespace fewstep::models
