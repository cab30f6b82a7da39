#include "src/models/unet2d_config.h"

#include <algorithm>
#include <set>

#include "src/models/json_fields.h"

namespace fewstep::models {
namespace {

constexpr std::string_view kDown = "DownBlock2D", kCrossDown = "CrossAttnDownBlock2D", kUp = "UpBlock2D", kCrossUp = "CrossAttnUpBlock2D";
constexpr std::string_view kCrossMid = "UNetMidBlock2DCrossAttn", kMid = "UNetMidBlock2D";
constexpr std::string_view kTextTime = "text_time";

// Keys of diffusers' UNet2DConditionModel that change the network, with the only value it is built for here.
std::vector<std::pair<const char*, Json>> fixed_keys() {
  return {{"only_cross_attention", false},  {"downsample_padding", 1},         {"mid_block_scale_factor", 1},
          {"dropout", 0},                   {"encoder_hid_dim", nullptr},      {"encoder_hid_dim_type", nullptr},
          {"num_attention_heads", nullptr}, {"dual_cross_attention", false},   {"reverse_transformer_layers_per_block", nullptr},
          {"class_embed_type", nullptr},    {"num_class_embeds", nullptr},     {"resnet_skip_time_act", false},
          {"resnet_out_scale_factor", 1},   {"time_embedding_dim", nullptr},   {"time_embedding_type", "positional"},
          {"timestep_post_act", nullptr},   {"time_cond_proj_dim", nullptr},   {"time_embedding_act_fn", nullptr},
          {"attention_type", "default"},    {"cross_attention_norm", nullptr}, {"class_embeddings_concat", false}};
}

void refuse_other_networks(const JsonFields& fields) {
  for (const auto& [key, value] : fixed_keys()) {
    const Json* found = fields.find(key);
    if (found == nullptr || *found == value) continue;
    const bool all_alike = found->is_array() && std::all_of(found->begin(), found->end(), [&value = value](const Json& v) { return v == value; });
    if (!all_alike) fail<ConfigError>("{}: {} {} is not supported (only {})", fields.where(), key, found->dump(), value.dump());
  }
}

// An integer, or a list with one a level.
void read_levels(const JsonFields& fields, const char* key, std::vector<int64_t>& target) {
  const Json* found = fields.find(key);
  if (found == nullptr) return;
  if (found->is_number_integer())
    target = {found->get<int64_t>()};
  else
    fields.get(key, target);
}

// A list is taken where its entries are the same.
void read_one(const JsonFields& fields, const char* key, int64_t& target) {
  const Json* found = fields.find(key);
  if (found == nullptr || !found->is_array() || found->empty()) return fields.get(key, target);
  std::vector<int64_t> values;
  fields.get(key, values);
  for (const int64_t v : values)
    if (v != values.front()) fail<ConfigError>("{}: {} {} is not supported: the values differ", fields.where(), key, found->dump());
  target = values.front();
}

// null means "none" here, where an absent key has a default.
void read_nullable(const Json& json, const JsonFields& fields, const char* key, std::string& target) {
  if (json.contains(key) && json[key].is_null()) target.clear();
  fields.get(key, target);
}

// What is read and written alike.
template <class Fields, class Config>
void unet2d_fields(const Fields& f, Config& c) {
  f.field("in_channels", c.in_channels);
  f.field("out_channels", c.out_channels);
  f.field("center_input_sample", c.center_input_sample);
  f.field("flip_sin_to_cos", c.flip_sin_to_cos);
  f.field("freq_shift", c.freq_shift);
  f.field("down_block_types", c.down_block_types);
  f.field("up_block_types", c.up_block_types);
  f.field("block_out_channels", c.block_out_channels);
  f.field("norm_num_groups", c.norm_num_groups);
  f.field("norm_eps", c.norm_eps);
  f.field("use_linear_projection", c.use_linear_projection);
  f.field("resnet_time_scale_shift", c.resnet_time_scale_shift);
  f.field("conv_in_kernel", c.conv_in_kernel);
  f.field("conv_out_kernel", c.conv_out_kernel);
  f.field("upcast_attention", c.upcast_attention);
}

Json levels_json(const std::vector<int64_t>& values) { return values.size() == 1 ? Json(values.front()) : Json(values); }
Json text_or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

// What is wrong with the config, as (key, message); empty when nothing is.
using Complaint = std::pair<std::string, std::string>;

void complain_of_lists(const UNet2DConfig& c, std::vector<Complaint>* out) {
  const auto levels = static_cast<size_t>(c.levels());
  const auto of_types = [&](const char* key, const std::vector<std::string>& types, std::string_view plain, std::string_view cross) {
    if (types.size() != levels) out->emplace_back(key, fmt::format("has {} entries for {} levels (block_out_channels)", types.size(), levels));
    for (const std::string& t : types)
      if (t != plain && t != cross) out->emplace_back(key, fmt::format("'{}' is not supported (only {}, {})", t, plain, cross));
  };
  of_types("down_block_types", c.down_block_types, kDown, kCrossDown);
  of_types("up_block_types", c.up_block_types, kUp, kCrossUp);
  const auto of_numbers = [&](const char* key, const std::vector<int64_t>& values, int64_t least) {
    if (values.size() != 1 && values.size() != levels)
      out->emplace_back(key, fmt::format("has {} entries: give one for all, or one for each of the {} levels", values.size(), levels));
    for (const int64_t v : values)
      if (v < least) out->emplace_back(key, fmt::format("must be at least {}, is {}", least, v));
  };
  of_numbers("layers_per_block", c.layers_per_block, 1);
  of_numbers("transformer_layers_per_block", c.transformer_layers_per_block, 0);
  of_numbers("attention_head_dim", c.attention_head_dim, 1);
}

void complain_of_widths(const UNet2DConfig& c, std::vector<Complaint>* out) {
  for (size_t i = 0; i < c.block_out_channels.size(); ++i) {
    const int64_t width = c.block_out_channels[i];
    if (width < 1 || c.norm_num_groups < 1 || width % c.norm_num_groups != 0)
      out->emplace_back("block_out_channels", fmt::format("{} is not a multiple of norm_num_groups {}", width, c.norm_num_groups));
    const bool deepest = i + 1 == c.block_out_channels.size();
    const size_t mirrored = c.block_out_channels.size() - 1 - i;
    const bool attends = c.down_block_types[i] == kCrossDown || c.up_block_types[mirrored] == kCrossUp || (deepest && c.mid_block_type == kCrossMid);
    if (const int64_t heads = c.heads(static_cast<int64_t>(i)); attends && width % heads != 0)
      out->emplace_back("attention_head_dim", fmt::format("{} heads (the number, not the size) do not divide {} channels", heads, width));
  }
}

std::vector<Complaint> complaints(const UNet2DConfig& c) {
  std::vector<Complaint> out;
  if (c.block_out_channels.empty()) return {{"block_out_channels", "needs at least one level"}};
  complain_of_lists(c, &out);
  if (out.empty()) complain_of_widths(c, &out);
  const std::pair<const char*, int64_t> positive[] = {{"in_channels", c.in_channels}, {"out_channels", c.out_channels}, {"cross_attention_dim", c.cross_attention_dim}};
  for (const auto& [key, value] : positive)
    if (value < 1) out.emplace_back(key, fmt::format("must be at least 1, is {}", value));
  for (const auto& [key, kernel] : {std::pair("conv_in_kernel", c.conv_in_kernel), std::pair("conv_out_kernel", c.conv_out_kernel)})
    if (kernel < 1 || kernel % 2 == 0) out.emplace_back(key, fmt::format("must be odd, is {}", kernel));
  if (!c.mid_block_type.empty() && c.mid_block_type != kCrossMid && c.mid_block_type != kMid)
    out.emplace_back("mid_block_type", fmt::format("'{}' is not supported (only {}, {}, or none)", c.mid_block_type, kCrossMid, kMid));
  if (c.resnet_time_scale_shift != "default" && c.resnet_time_scale_shift != "scale_shift")
    out.emplace_back("resnet_time_scale_shift", fmt::format("'{}' is not supported (only default, scale_shift)", c.resnet_time_scale_shift));
  if (c.has_additions() && c.addition_embed_type != kTextTime)
    out.emplace_back("addition_embed_type", fmt::format("'{}' is not supported (only {}, or none)", c.addition_embed_type, kTextTime));
  if (c.has_additions() && (c.addition_time_embed_dim < 1 || c.projection_class_embeddings_input_dim < 1))
    out.emplace_back("projection_class_embeddings_input_dim",
                     fmt::format("text_time needs it and addition_time_embed_dim to be at least 1, they are {} and {}",
                                 c.projection_class_embeddings_input_dim, c.addition_time_embed_dim));
  return out;
}

}  // namespace

bool UNet2DConfig::has_cross_attention() const {
  const auto has = [](const std::vector<std::string>& types, std::string_view wanted) { return std::find(types.begin(), types.end(), wanted) != types.end(); };
  return has(down_block_types, kCrossDown) || has(up_block_types, kCrossUp) || mid_block_type == kCrossMid;
}

UNet2DConfig UNet2DConfig::from_json(const Json& json, std::string_view where) {
  const JsonFields fields(json, where);
  UNet2DConfig c;
  refuse_other_networks(fields);
  if (const Json* act = fields.find("act_fn"); act != nullptr && *act != "swish") fields.only("act_fn", "silu");  // two names of one function
  if (json.contains("norm_num_groups") && json["norm_num_groups"].is_null())
    fail<ConfigError>("{}: norm_num_groups null (no normalisation) is not supported", where);
  unet2d_fields(fields, c);
  read_one(fields, "sample_size", c.sample_size);
  read_nullable(json, fields, "mid_block_type", c.mid_block_type);
  read_levels(fields, "layers_per_block", c.layers_per_block);
  read_levels(fields, "transformer_layers_per_block", c.transformer_layers_per_block);
  read_levels(fields, "attention_head_dim", c.attention_head_dim);
  read_one(fields, "cross_attention_dim", c.cross_attention_dim);
  read_nullable(json, fields, "addition_embed_type", c.addition_embed_type);
  fields.get("addition_time_embed_dim", c.addition_time_embed_dim);
  fields.get("projection_class_embeddings_input_dim", c.projection_class_embeddings_input_dim);
  c.validate(where);
  return c;
}

Json UNet2DConfig::to_json() const {
  Json own;
  unet2d_fields(JsonWriter(own), *this);
  own["act_fn"] = "silu";
  own["addition_embed_type"] = text_or_null(addition_embed_type);
  own["addition_time_embed_dim"] = has_additions() ? Json(addition_time_embed_dim) : Json(nullptr);
  own["attention_head_dim"] = levels_json(attention_head_dim);
  own["cross_attention_dim"] = cross_attention_dim;
  own["layers_per_block"] = levels_json(layers_per_block);
  own["mid_block_type"] = text_or_null(mid_block_type);
  own["projection_class_embeddings_input_dim"] = has_additions() ? Json(projection_class_embeddings_input_dim) : Json(nullptr);
  own["sample_size"] = sample_size > 0 ? Json(sample_size) : Json(nullptr);
  own["transformer_layers_per_block"] = levels_json(transformer_layers_per_block);
  Json json = {{"_class_name", "UNet2DConditionModel"}};
  for (const auto& [key, value] : fixed_keys()) json[key] = value;
  json.update(sorted_by_key(own));
  return json;
}

void UNet2DConfig::validate(std::string_view where) const {
  for (const auto& [key, message] : complaints(*this)) fail<ConfigError>("{}: {} {}", where, key, message);
}

void describe(config::Visitor& v, UNet2DConfig& c) {
  v.field("block_out_channels", c.block_out_channels, "width of each level, finest first; a factor 2 in resolution between neighbours", config::kAtLeastOne);
  v.field("down_block_types", c.down_block_types, "DownBlock2D (convolutions) or CrossAttnDownBlock2D (and transformers) for each level, finest first");
  v.field("mid_block_type", c.mid_block_type, "UNetMidBlock2DCrossAttn, UNetMidBlock2D (one residual block), or empty: none");
  v.field("up_block_types", c.up_block_types, "UpBlock2D or CrossAttnUpBlock2D for each level, coarsest first");
  v.field("layers_per_block", c.layers_per_block,
          "residual blocks of a level on the way down (one more on the way up): one number for all levels, or one each", config::kAtLeastOne);
  v.field("transformer_layers_per_block", c.transformer_layers_per_block,
          "blocks of each transformer: one number for all levels, or one each, finest first", config::kNonNegative);
  v.field("attention_head_dim", c.attention_head_dim,
          "NUMBER of attention heads (diffusers' name for it): one for all levels, or one each", config::kAtLeastOne);
  v.field("norm_num_groups", c.norm_num_groups, "groups of every GroupNorm; divides all widths", config::kAtLeastOne);
  v.field("norm_eps", c.norm_eps, "epsilon of the GroupNorms of residual blocks", config::kPositive);
  v.field("cross_attention_dim", c.cross_attention_dim, "width of the context", config::kAtLeastOne);
  v.field("use_linear_projection", c.use_linear_projection, "linear layers around each transformer instead of 1 x 1 convolutions (SD 2, SDXL)");
  v.field("addition_time_embed_dim", c.addition_time_embed_dim, "size of the sinusoid of each number of micro-conditioning", config::kAtLeastOne);
  v.field("resnet_time_scale_shift", c.resnet_time_scale_shift, "how time enters a residual block: default (added) or scale_shift");
  std::set<Complaint> seen;
  for (const Complaint& found : complaints(c)) {
    const std::string_view key = found.first;
    const bool set_here = key != "in_channels" && key != "out_channels" && key != "addition_embed_type" && key != "projection_class_embeddings_input_dim";
    if (set_here && seen.insert(found).second) v.check(false, key, found.second);
  }
}

UNet2DConfig sdxl_base_config() {
  UNet2DConfig c;
  c.sample_size = 128;
  c.block_out_channels = {320, 640, 1280};
  c.down_block_types = {std::string(kDown), std::string(kCrossDown), std::string(kCrossDown)};
  c.up_block_types = {std::string(kCrossUp), std::string(kCrossUp), std::string(kUp)};
  c.transformer_layers_per_block = {1, 2, 10};
  c.attention_head_dim = {5, 10, 20};
  c.cross_attention_dim = 2048;
  c.use_linear_projection = true;
  c.addition_embed_type = kTextTime;
  c.projection_class_embeddings_input_dim = 2816;
  return c;
}

UNet2DConfig sdxl_refiner_config() {
  UNet2DConfig c = sdxl_base_config();
  c.block_out_channels = {384, 768, 1536, 1536};
  c.down_block_types = {std::string(kDown), std::string(kCrossDown), std::string(kCrossDown), std::string(kDown)};
  c.up_block_types = {std::string(kUp), std::string(kCrossUp), std::string(kCrossUp), std::string(kUp)};
  c.transformer_layers_per_block = {4};
  c.attention_head_dim = {6, 12, 24, 24};
  c.cross_attention_dim = 1280;
  c.projection_class_embeddings_input_dim = 2560;
  return c;
}

}  // namespace fewstep::models
