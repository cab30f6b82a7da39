#include "src/models/stability_layout.h"

#include <algorithm>

#include "src/base/error.h"
#include "src/base/text.h"
#include "src/models/stability_names.h"
#include "src/tensor/ops.h"

namespace fewstep::models {
namespace {

std::vector<std::string> keys_of(const TensorMap& tensors) {
  std::vector<std::string> names;
  for (const auto& [name, t] : tensors) names.push_back(name);
  return names;
}

// The weights of the four projections of a VAE's attention: [out, in] here, [out, in, 1, 1] there.
bool is_vae_projection(const std::string& ours) {
  if (!ours.ends_with(".weight") || ours.find(".mid_block.attentions.") == ours.npos) return false;
  return ours.find(".to_") != ours.npos;
}
Tensor as_convolution(const Tensor& t) { return t.dim() == 2 ? t.unsqueeze(-1).unsqueeze(-1) : t; }
Tensor as_linear(const Tensor& t) { return t.dim() == 4 && t.size(2) == 1 && t.size(3) == 1 ? t.squeeze(-1).squeeze(-1) : t; }

constexpr const char* kProjections[] = {"q_proj", "k_proj", "v_proj"};
constexpr std::string_view kTheirLayers = "transformer.resblocks.", kOurLayers = "text_model.encoder.layers.";

int64_t layers_in(const TensorMap& tensors, std::string_view before) {
  int64_t layers = 0;
  for (const auto& [name, t] : tensors) {
    if (!name.starts_with(before)) continue;
    const std::string number = name.substr(before.size(), name.find('.', before.size()) - before.size());
    if (!number.empty() && number.size() < 6 && std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; }))
      layers = std::max<int64_t>(layers, std::stoll(number) + 1);
  }
  return layers;
}

// Rows [query; key; value] of `theirs` -> three tensors.
bool unpack_projection(const std::string& name, const Tensor& t, TensorMap& out, std::string_view where) {
  constexpr std::string_view kPacked = ".attn.in_proj_";
  const size_t at = name.find(kPacked);
  if (at == name.npos || !name.starts_with(kTheirLayers)) return false;
  if (t.dim() < 1 || t.size(0) % 3 != 0) fail<DataError>("{}: '{}' of shape {} does not hold query, key and value", where, name, fmt::join(t.sizes(), "x"));
  const std::string layer = std::string(kOurLayers) + name.substr(kTheirLayers.size(), at - kTheirLayers.size());
  const std::string kind = name.substr(at + kPacked.size());  // weight, bias
  const int64_t rows = t.size(0) / 3;
  for (int64_t p = 0; p < 3; ++p) out[fmt::format("{}.self_attn.{}.{}", layer, kProjections[p], kind)] = t.narrow(0, p * rows, rows);
  return true;
}

// The inverse, for all layers; takes the three out of `ours`.
void pack_projections(TensorMap& ours, int64_t layers, TensorMap& out, std::string_view where) {
  for (int64_t i = 0; i < layers; ++i)
    for (const char* kind : {"weight", "bias"}) {
      std::vector<Tensor> parts;
      for (const char* p : kProjections) {
        const std::string name = fmt::format("{}{}.self_attn.{}.{}", kOurLayers, i, p, kind);
        const auto it = ours.find(name);
        if (it == ours.end()) fail<DataError>("{}: tensor '{}' is missing", where, name);
        if (!parts.empty() && it->second.scalar_type() != parts[0].scalar_type())
          fail<DataError>("{}: tensor '{}' has another dtype than its neighbours, with which it is packed", where, name);
        parts.push_back(it->second);
        ours.erase(it);
      }
      out[fmt::format("{}{}.attn.in_proj_{}", kTheirLayers, i, kind)] = at::cat(parts);
    }
}

TensorMap open_clip_to_ours(const TensorMap& theirs, TensorMap& rest, std::string_view where) {
  const NameTable table = open_clip_names(layers_in(theirs, kTheirLayers));
  TensorMap out;
  for (const auto& [name, t] : theirs) {
    if (unpack_projection(name, t, out, where)) continue;
    if (name == "text_projection" && t.dim() == 2) out["text_projection.weight"] = t.t();
    else if (const auto ours = table.ours(name)) out[*ours] = t;
    else rest[name] = t;
  }
  return out;
}

TensorMap open_clip_to_theirs(TensorMap ours, TensorMap& rest, std::string_view where) {
  const int64_t layers = layers_in(ours, kOurLayers);
  const NameTable table = open_clip_names(layers);
  TensorMap out;
  pack_projections(ours, layers, out, where);
  for (const auto& [name, t] : ours) {
    if (name == "text_projection.weight") out["text_projection"] = t.t();
    else if (const auto theirs = table.theirs(name)) out[*theirs] = t;
    else rest[name] = t;
  }
  return out;
}

// UNet and VAE: a table of names, and the shapes of the VAE's attention.
NameTable table_of(StabilityPart part, const std::vector<std::string>& names, bool theirs, std::string_view where) {
  if (part == StabilityPart::unet) return (theirs ? UnetNames::from_theirs(names, where) : UnetNames::from_ours(names, where)).table();
  return (theirs ? VaeNames::from_theirs(names, where) : VaeNames::from_ours(names, where)).table();
}

}  // namespace

std::string modern_name(StabilityPart part, const std::string& name) {
  if (part == StabilityPart::vae) return modern_vae_name(name);
  const bool text = part == StabilityPart::clip_text || part == StabilityPart::open_clip_text;
  return text && !name.starts_with("text_model.") && !name.starts_with("text_projection.") ? "text_model." + name : name;
}

TensorMap modern_names(StabilityPart part, const TensorMap& ours) {
  TensorMap out;
  for (const auto& [name, t] : ours) {
    const std::string modern = modern_name(part, name);
    out[modern] = part == StabilityPart::vae && is_vae_projection(modern) ? as_linear(t) : t;
  }
  return out;
}

TensorMap to_diffusers(StabilityPart part, const TensorMap& theirs, TensorMap& rest, std::string_view where) {
  if (part == StabilityPart::clip_text) return theirs;  // transformers' names already
  if (part == StabilityPart::open_clip_text) return open_clip_to_ours(theirs, rest, where);
  const NameTable table = table_of(part, keys_of(theirs), true, where);
  TensorMap out;
  for (const auto& [name, t] : theirs) {
    const auto ours = table.ours(name);
    if (!ours) rest[name] = t;
    else out[*ours] = part == StabilityPart::vae && is_vae_projection(*ours) ? as_linear(t) : t;
  }
  return out;
}

TensorMap to_stability(StabilityPart part, const TensorMap& given, TensorMap& rest, std::string_view where) {
  const TensorMap ours = modern_names(part, given);
  if (part == StabilityPart::clip_text) return ours;
  if (part == StabilityPart::open_clip_text) return open_clip_to_theirs(ours, rest, where);
  const NameTable table = table_of(part, keys_of(ours), false, where);
  TensorMap out;
  for (const auto& [name, t] : ours) {
    const auto theirs = table.theirs(name);
    if (!theirs) rest[name] = t;
    else out[*theirs] = part == StabilityPart::vae && is_vae_projection(name) ? as_convolution(t) : t;
  }
  return out;
}

}  // namespace fewstep::models
