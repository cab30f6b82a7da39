// The kind `latent_cache`: what the frozen parts of a diffusion model make of a data set, computed once.
// Of every image K variants are kept (crop and flip of K epochs of the source), each with ITS six numbers, and of every
// variant the posterior (mean and deviation) and not one draw of it: every step may draw anew. Texts are embedded once
// for each distinct caption, and once for the empty prompt, so that conditions can still be dropped at random.
//
// Layout (HDF5; N images, M distinct captions, b a bucket of H x W pixels with n_b images):
//   bucket_HxW/mean, bucket_HxW/std  float16 | float32 [n_b K, C, h, w]   raw latents, not scaled; row = row[i] K +
//   variant bucket_HxW/micro                 int64 [n_b K, 7]   h_orig, w_orig, c_top, c_left, h_tgt, w_tgt, flipped
//   ids, labels, bucket, row         int64 [N]          in the source's order; bucket: index into `buckets`
//   aesthetic                        float64 [N]        -1: no score
//   attributes                       text [N]           a JSON object each, where the source names attributes
//   captions                         text [M]           distinct; captions_of int64 [N + 1], caption_ids int64 [...]
//   context, pooled                  float16 [M + 1, L, D], [M + 1, P]   row 0: the empty prompt; where texts were
//   embedded
// and the file attributes format, key, facts (JSON: what the key is the SHA-256 of), buckets, class_names, source.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "datasets/dataset.h"

namespace fewstep {

struct LatentCacheConfig : DatasetConfig {
  std::string train, heldout, test;  // files; empty: the split is not there
  bool in_memory = false;            // read once: many small images
  SmallBuckets small_buckets = SmallBuckets::error;
  std::unique_ptr<DatasetConfig> source;  // optional: what the files must have been made of
  std::string_view kind() const override { return "latent_cache"; }
  void describe(config::Visitor& v) override;
  // DataError when a file is not a cache, or was made of something else than `source`: both fingerprints, what differs
  // and the command that makes it anew.
  std::unique_ptr<Dataset> build(Split split) const override;
};

// What a cache depends on. Its key is the SHA-256 of all of it.
struct CacheFacts {
  int64_t version = 1;
  std::string source, source_fingerprint, split;  // description, fingerprint, "train" | "heldout" | "test"
  Json framing;                                   // the source's conditioning_facts(): crop, flip, decode, buckets ...
  std::string vae, vae_name;                      // vae_identity(); the folder it came from (not part of the key)
  std::string text, text_name;                    // text_encoder_identity(); empty: no texts
  int64_t variants = 1, seed = 0, smallest_bucket = 0;
  std::string dtype = "float16";
  Json to_json() const;
  static CacheFacts from_json(const Json& json, std::string_view where);  // DataError
  std::string key() const;
  std::string command(const std::filesystem::path& out) const;  // that makes such a cache
};

// Trainers find it by dynamic_cast.
class LatentCache : public Dataset {
 public:
  virtual const CacheFacts& facts() const = 0;
  virtual const std::filesystem::path& path() const = 0;
  virtual std::vector<int64_t> latent_shape(int64_t bucket) const = 0;  // {C, h, w}
  // Embeddings of the empty prompt, float32 [L, D] and [P]; undefined without texts.
  virtual Tensor null_context() const = 0;
  virtual Tensor null_pooled() const = 0;
  // DataError unless the cache was made by this autoencoder and, where it holds texts, these encoders (empty: the model
  // has none, so cached texts are of no use to it and are refused).
  void check(std::string_view vae_identity, std::string_view text_identity) const;
};

// SHA-256 over names and contents of the files of folders, in order; where a folder lies does not matter. DataError: no
// files. A component that was copied or linked into another model keeps its identity.
std::string folders_identity(std::span<const std::filesystem::path> folders);
std::string vae_identity(const std::filesystem::path& folder);  // of its vae/, or of itself: where config.json is
std::string text_encoder_identity(const std::filesystem::path& model_folder);  // text_encoder*, tokenizer*

bool is_latent_cache(const std::filesystem::path& path);  // by its `format`; false for other HDF5 files

// --- writing ---

struct CachedPosterior {
  Tensor mean, std;  // [B, C, h, w], raw
};
struct CachedText {
  Tensor context, pooled;  // [B, L, D], [B, P] or undefined
};
struct CacheEncoders {
  std::function<CachedPosterior(const Tensor& images)> images;  // float32 [B, C, H, W] in [-1, 1], one bucket
  std::function<CachedText(const std::vector<std::string>& captions)> texts = {};  // empty: no texts
};
struct CacheOptions {
  int64_t variants = 1, seed = 0;
  int64_t batch = 16, threads = 1;  // images an encoder call; threads that decode
  int64_t smallest_bucket = 0;  // buckets with fewer images are merged or dropped as the source's small_buckets says
  bool half = true;
  Split split = Split::train;
  std::string vae, vae_name, text, text_name;  // identities, and where they came from
};
// Written under a temporary name and renamed when whole. NumericError names the sample whose latents are not finite (or
// beyond float16). `progress` gets the encoded images so far, of dataset.size() * variants.
CacheFacts write_latent_cache(const Dataset& dataset, const std::filesystem::path& out, const CacheEncoders& encoders,
                              const CacheOptions& options, const std::function<void(int64_t)>& progress = {});

}  // namespace fewstep
