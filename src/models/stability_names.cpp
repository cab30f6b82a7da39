#include "src/models/stability_names.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "src/base/error.h"
#include "src/base/text.h"

namespace fewstep::models {
namespace {

std::optional<std::string> renamed(const std::unordered_map<std::string, std::string>& table, std::string_view name) {
  for (size_t cut = name.size(); cut != std::string_view::npos && cut > 0; cut = name.rfind('.', cut - 1))
    if (const auto it = table.find(std::string(name.substr(0, cut))); it != table.end())
      return it->second + std::string(name.substr(cut));
  return std::nullopt;
}

// The number behind `before` in a name that starts with it: ("down_blocks.2.resnets...", "down_blocks.") -> 2; -1: none.
int64_t number_after(std::string_view name, std::string_view before) {
  if (!name.starts_with(before)) return -1;
  int64_t value = -1;
  const char *begin = name.data() + before.size(), *end = name.data() + name.size();
  const auto [stop, code] = std::from_chars(begin, end, value);
  return code == std::errc() && stop != end && *stop == '.' ? value : -1;
}

// 1 + the largest number behind `before`; 0: there is no such name.
int64_t count_after(const std::vector<std::string>& names, std::string_view before) {
  int64_t count = 0;
  for (const std::string& name : names) count = std::max(count, number_after(name, before) + 1);
  return count;
}

bool any_starts_with(const std::vector<std::string>& names, std::string_view prefix) {
  return std::any_of(names.begin(), names.end(), [&](const std::string& n) { return n.starts_with(prefix); });
}

[[noreturn]] void unknown_layout(std::string_view where, std::string_view what) {
  fail<DataError>("{}: the tensors' names are not those of {}", where, what);
}

constexpr std::pair<const char*, const char*> kResnet[] = {
    {"norm1", "in_layers.0"},  {"conv1", "in_layers.2"},  {"time_emb_proj", "emb_layers.1"},
    {"norm2", "out_layers.0"}, {"conv2", "out_layers.3"}, {"conv_shortcut", "skip_connection"}};
constexpr std::pair<const char*, const char*> kUnetEnds[] = {
    {"time_embedding.linear_1", "time_embed.0"},  {"time_embedding.linear_2", "time_embed.2"},
    {"add_embedding.linear_1", "label_emb.0.0"},  {"add_embedding.linear_2", "label_emb.0.2"},
    {"conv_in", "input_blocks.0.0"},              {"conv_norm_out", "out.0"},
    {"conv_out", "out.2"},                        {"mid_block.attentions.0", "middle_block.1"}};

void add_resnet(NameTable& table, const std::string& ours, const std::string& theirs) {
  for (const auto& [a, b] : kResnet) table.add(ours + "." + a, theirs + "." + b);
}

}  // namespace

void NameTable::add(const std::string& ours_name, const std::string& theirs_name) {
  FEW_CHECK(to_theirs_.emplace(ours_name, theirs_name).second, "'{}' is in the table already", ours_name);
  FEW_CHECK(to_ours_.emplace(theirs_name, ours_name).second, "'{}' is in the table already", theirs_name);
}
std::optional<std::string> NameTable::theirs(std::string_view name) const { return renamed(to_theirs_, name); }
std::optional<std::string> NameTable::ours(std::string_view name) const { return renamed(to_ours_, name); }

UnetNames UnetNames::from_ours(const std::vector<std::string>& names, std::string_view where) {
  UnetNames u{.levels = count_after(names, "down_blocks."), .layers_per_block = count_after(names, "down_blocks.0.resnets.")};
  if (u.levels < 1 || u.layers_per_block < 1 || count_after(names, "up_blocks.") != u.levels ||
      count_after(names, "up_blocks.0.resnets.") != u.layers_per_block + 1)
    unknown_layout(where, "diffusers' UNet2DConditionModel");
  for (int64_t i = 0; i < u.levels; ++i) {
    if (const int64_t n = count_after(names, fmt::format("down_blocks.{}.resnets.", i)); n != u.layers_per_block)
      fail<DataError>("{}: {} layers in down_blocks.0 and {} in down_blocks.{}: single files number the blocks for equal levels", where, u.layers_per_block, n, i);
    u.up_attention.push_back(any_starts_with(names, fmt::format("up_blocks.{}.attentions.", i)));
  }
  return u;
}

// Blocks in a row: the first convolution, then for each level its layers and (except the last) a downsampler, "op".
UnetNames UnetNames::from_theirs(const std::vector<std::string>& names, std::string_view where) {
  constexpr std::string_view kWhat = "sgm's UNetModel";
  std::set<int64_t> downs;
  for (const std::string& name : names)
    if (const int64_t k = number_after(name, "input_blocks."); k > 0 && name == fmt::format("input_blocks.{}.0.op.weight", k)) downs.insert(k);
  const int64_t inputs = count_after(names, "input_blocks."), outputs = count_after(names, "output_blocks.");
  UnetNames u{.levels = static_cast<int64_t>(downs.size()) + 1, .layers_per_block = downs.empty() ? inputs - 1 : *downs.begin() - 1};
  const int64_t stride = u.layers_per_block + 1;
  if (u.layers_per_block < 1 || inputs != stride * u.levels || outputs != inputs) unknown_layout(where, kWhat);
  for (const int64_t k : downs)
    if (k % stride != 0) unknown_layout(where, kWhat);
  for (int64_t i = 0; i < u.levels; ++i) u.up_attention.push_back(any_starts_with(names, fmt::format("output_blocks.{}.1.proj_in.", stride * i)));
  return u;
}

NameTable UnetNames::table() const {
  NameTable t;
  const int64_t stride = layers_per_block + 1;
  for (const auto& [a, b] : kUnetEnds) t.add(a, b);
  add_resnet(t, "mid_block.resnets.0", "middle_block.0");
  add_resnet(t, "mid_block.resnets.1", "middle_block.2");
  for (int64_t i = 0; i < levels; ++i) {
    for (int64_t j = 0; j < layers_per_block; ++j) {
      const std::string block = fmt::format("input_blocks.{}", stride * i + j + 1);
      add_resnet(t, fmt::format("down_blocks.{}.resnets.{}", i, j), block + ".0");
      t.add(fmt::format("down_blocks.{}.attentions.{}", i, j), block + ".1");
    }
    if (i + 1 < levels) t.add(fmt::format("down_blocks.{}.downsamplers.0.conv", i), fmt::format("input_blocks.{}.0.op", stride * (i + 1)));
    for (int64_t j = 0; j < stride; ++j) {
      const std::string block = fmt::format("output_blocks.{}", stride * i + j);
      add_resnet(t, fmt::format("up_blocks.{}.resnets.{}", i, j), block + ".0");
      if (up_attention[static_cast<size_t>(i)]) t.add(fmt::format("up_blocks.{}.attentions.{}", i, j), block + ".1");
    }
    if (i + 1 < levels)
      t.add(fmt::format("up_blocks.{}.upsamplers.0.conv", i),
            fmt::format("output_blocks.{}.{}.conv", stride * i + layers_per_block, up_attention[static_cast<size_t>(i)] ? 2 : 1));
  }
  return t;
}

// A file may hold one half only (a decoder): what is there counts.
VaeNames VaeNames::from_ours(const std::vector<std::string>& names, std::string_view where) {
  VaeNames v{.levels = std::max(count_after(names, "encoder.down_blocks."), count_after(names, "decoder.up_blocks.")),
             .layers_per_block = std::max(count_after(names, "encoder.down_blocks.0.resnets."), count_after(names, "decoder.up_blocks.0.resnets.") - 1)};
  if (v.levels < 1 || v.layers_per_block < 1) unknown_layout(where, "diffusers' AutoencoderKL");
  return v;
}
VaeNames VaeNames::from_theirs(const std::vector<std::string>& names, std::string_view where) {
  VaeNames v{.levels = std::max(count_after(names, "encoder.down."), count_after(names, "decoder.up.")),
             .layers_per_block = std::max(count_after(names, "encoder.down.0.block."), count_after(names, "decoder.up.0.block.") - 1)};
  if (v.levels < 1 || v.layers_per_block < 1) unknown_layout(where, "ldm's AutoencoderKL");
  return v;
}

// The resnets of ldm have diffusers' names but for the shortcut; decoder.up.0 is the finest level, up_blocks.0 the coarsest.
NameTable VaeNames::table() const {
  NameTable t;
  const auto resnet = [&](const std::string& ours, const std::string& theirs) {
    for (const char* same : {"norm1", "conv1", "norm2", "conv2"}) t.add(ours + "." + same, theirs + "." + same);
    t.add(ours + ".conv_shortcut", theirs + ".nin_shortcut");
  };
  for (const char* same : {"quant_conv", "post_quant_conv"}) t.add(same, same);
  for (const std::string half : {"encoder", "decoder"}) {
    t.add(half + ".conv_in", half + ".conv_in"), t.add(half + ".conv_out", half + ".conv_out");
    t.add(half + ".conv_norm_out", half + ".norm_out");
    resnet(half + ".mid_block.resnets.0", half + ".mid.block_1");
    resnet(half + ".mid_block.resnets.1", half + ".mid.block_2");
    const std::string ours = half + ".mid_block.attentions.0.", theirs = half + ".mid.attn_1.";
    t.add(ours + "group_norm", theirs + "norm"), t.add(ours + "to_q", theirs + "q"), t.add(ours + "to_k", theirs + "k");
    t.add(ours + "to_v", theirs + "v"), t.add(ours + "to_out.0", theirs + "proj_out");
  }
  for (int64_t i = 0; i < levels; ++i) {
    const std::string down = fmt::format("encoder.down_blocks.{}.", i), ldm_down = fmt::format("encoder.down.{}.", i);
    const std::string up = fmt::format("decoder.up_blocks.{}.", i), ldm_up = fmt::format("decoder.up.{}.", levels - 1 - i);
    for (int64_t j = 0; j < layers_per_block; ++j) resnet(fmt::format("{}resnets.{}", down, j), fmt::format("{}block.{}", ldm_down, j));
    for (int64_t j = 0; j <= layers_per_block; ++j) resnet(fmt::format("{}resnets.{}", up, j), fmt::format("{}block.{}", ldm_up, j));
    if (i + 1 < levels) t.add(down + "downsamplers.0.conv", ldm_down + "downsample.conv"), t.add(up + "upsamplers.0.conv", ldm_up + "upsample.conv");
  }
  return t;
}

std::string modern_vae_name(const std::string& name) {
  constexpr std::pair<std::string_view, std::string_view> kOld[] = {
      {"query", "to_q"}, {"key", "to_k"}, {"value", "to_v"}, {"proj_attn", "to_out.0"}};
  constexpr std::string_view kAttention = ".attentions.0.";
  const size_t at = name.find(kAttention);
  if (at == name.npos) return name;
  const size_t begin = at + kAttention.size(), end = name.find('.', begin);
  for (const auto& [old, modern] : kOld)
    if (end != name.npos && std::string_view(name).substr(begin, end - begin) == old)
      return name.substr(0, begin) + std::string(modern) + name.substr(end);
  return name;
}

NameTable open_clip_names(int64_t layers) {
  NameTable t;
  t.add("text_model.embeddings.token_embedding", "token_embedding");
  t.add("text_model.embeddings.position_embedding.weight", "positional_embedding");
  t.add("text_model.final_layer_norm", "ln_final");
  for (int64_t i = 0; i < layers; ++i) {
    const std::string ours = fmt::format("text_model.encoder.layers.{}.", i), theirs = fmt::format("transformer.resblocks.{}.", i);
    t.add(ours + "layer_norm1", theirs + "ln_1"), t.add(ours + "layer_norm2", theirs + "ln_2");
    t.add(ours + "mlp.fc1", theirs + "mlp.c_fc"), t.add(ours + "mlp.fc2", theirs + "mlp.c_proj");
    t.add(ours + "self_attn.out_proj", theirs + "attn.out_proj");
  }
  return t;
}

}  // namespace fewstep::models
