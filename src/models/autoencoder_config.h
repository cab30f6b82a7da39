// What the configs of diffusers' two autoencoders (VQModel, AutoencoderKL) have in common: keys and checks.
#pragma once
#include "src/models/json_fields.h"

namespace fewstep::models {

template <class Fields, class Config>
void autoencoder_fields(const Fields& f, Config& c) {
  f.field("in_channels", c.in_channels);
  f.field("out_channels", c.out_channels);
  f.field("block_out_channels", c.block_out_channels);
  f.field("layers_per_block", c.layers_per_block);
  f.field("latent_channels", c.latent_channels);
  f.field("norm_num_groups", c.norm_num_groups);
  f.field("sample_size", c.sample_size);
  f.field("scaling_factor", c.scaling_factor);
  f.field("mid_block_add_attention", c.mid_block_add_attention);
}

template <class Config>
void read_autoencoder(const JsonFields& fields, Config& c) {
  fields.only("act_fn", "silu");
  fields.only_all("down_block_types", "DownEncoderBlock2D");
  fields.only_all("up_block_types", "UpDecoderBlock2D");
  autoencoder_fields(fields, c);
  fields.get("patch_size", c.patch_size);
}

template <class Config>
Json write_autoencoder(const char* class_name, const Config& c) {
  Json json = {{"_class_name", class_name},
               {"act_fn", "silu"},
               {"down_block_types", std::vector<std::string>(c.block_out_channels.size(), "DownEncoderBlock2D")},
               {"up_block_types", std::vector<std::string>(c.block_out_channels.size(), "UpDecoderBlock2D")}};
  autoencoder_fields(JsonWriter(json), c);
  return json;
}

// With its keys in diffusers' order; patch_size, which is no part of diffusers' classes, last and where it is not 1.
template <class Config>
Json ordered_autoencoder(const Json& json, const Config& c) {
  Json out = sorted_by_key(json);
  if (c.patch_size != 1) out["patch_size"] = c.patch_size;
  return out;
}

template <class Config>
void validate_autoencoder(const Config& c, std::string_view where) {
  const std::pair<const char*, int64_t> positive[] = {
      {"in_channels", c.in_channels}, {"out_channels", c.out_channels}, {"layers_per_block", c.layers_per_block},
      {"latent_channels", c.latent_channels}, {"norm_num_groups", c.norm_num_groups}, {"patch_size", c.patch_size},
      {"number of block_out_channels", static_cast<int64_t>(c.block_out_channels.size())}};
  for (const auto& [key, value] : positive)
    if (value < 1) fail<ConfigError>("{}: {} must be at least 1, is {}", where, key, value);
  for (const int64_t width : c.block_out_channels)
    if (width < 1 || width % c.norm_num_groups != 0)
      fail<ConfigError>("{}: block_out_channels {} is not a multiple of norm_num_groups {}", where, width, c.norm_num_groups);
}

}  // namespace fewstep::models
