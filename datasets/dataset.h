// Data sets: a sized, random-access list of samples, and the batch a trainer sees.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "datasets/buckets.h"
#include "datasets/micro_conditioning.h"
#include "src/base/json.h"
#include "src/config/visitor.h"
#include "src/tensor/tensor.h"

namespace fewstep {

inline constexpr double kNoScore = -1;  // a model's setting says what stands for it

struct Sample {
  int64_t id = 0;                                 // stable over runs: errors, logs and random streams name it
  Tensor image;                                   // uint8 [C, H, W]
  std::string caption;                            // the one chosen for this (seed, epoch)
  int64_t label = -1;                             // class, where the data set has classes
  std::map<std::string, std::string> attributes = {};  // e.g. {"tone": "dark", "height": "long"}; what captions may name
  // How `image` was framed. Left at zero by data sets that do not resize: collate then takes the image's own size.
  MicroConditioning micro = {};
  double aesthetic = kNoScore;  // score of the image, from 0 on, where the data has one
  // Cached instead of computed, undefined otherwise. With latents `image` may be undefined.
  Tensor latent_mean = {}, latent_std = {};  // float32 [C, h, w]: the autoencoder's posterior, not scaled
  Tensor context = {}, pooled = {};          // float32 [L, D], [P]: text embeddings of `caption`
};

class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual int64_t size() const = 0;
  // Thread-safe. `epoch` chooses among captions and augmentations, keyed by (seed, epoch, id). DataError with the
  // place.
  virtual Sample get(int64_t index, uint64_t seed, int64_t epoch) const = 0;
  // The same framed for buckets()[bucket], where small buckets are merged into others. Data sets that cannot frame an
  // image anew (can_reframe() is false) only know bucket_of(index).
  virtual Sample get_in(int64_t index, int64_t bucket, uint64_t seed, int64_t epoch) const;
  virtual bool can_reframe() const { return false; }
  // Target sizes, and which of them get() gives sample `index`: a batch holds samples of one bucket. Empty or one: every
  // sample has the same size.
  virtual std::vector<BucketSize> buckets() const { return {}; }
  virtual int64_t bucket_of(int64_t) const { return 0; }
  virtual SmallBuckets small_buckets() const { return SmallBuckets::error; }
  // How images are framed, for model cards, caches and their keys: {"crop", "flip", "decode", "small_images", "buckets"};
  // an empty object for data sets that do not frame.
  virtual Json conditioning_facts() const;
  // The data set whose get() fails where a sample cannot be read: itself, or what a replacing one wraps.
  virtual const Dataset& strict() const { return *this; }
  // Every caption that get() may choose for this sample, in the order choose_caption counts them.
  virtual std::vector<std::string> captions(int64_t index) const { return {get(index, 0, 0).caption}; }
  virtual std::vector<std::string> class_names() const { return {}; }
  // The image file of sample `index`, for data sets that are lists of files; else empty.
  virtual std::filesystem::path image_file(int64_t) const { return {}; }
  virtual std::string description() const = 0;  // one line for logs and reports
  virtual std::string fingerprint() const = 0;  // SHA-256 over content identity (files, sizes, options)
};

// Which of `count` captions: the one rule of all data sets, so that packing changes no stream.
int64_t choose_caption(int64_t count, uint64_t seed, int64_t epoch, int64_t id);

// Which part of a data set: every kind offers the same names, `heldout` is cut from the end of train.
enum class Split { train, heldout, test };
std::string_view name_of(Split split);
std::span<const config::Choice> split_choices();  // for v.field(..., split_choices())

struct DatasetConfig {
  virtual ~DatasetConfig() = default;
  virtual std::string_view kind() const = 0;
  virtual void describe(config::Visitor& v) = 0;
  virtual std::unique_ptr<Dataset> build(Split split) const = 0;
};
struct DatasetKind {
  std::string_view name;
  std::unique_ptr<DatasetConfig> (*make)();
};
std::span<const DatasetKind> dataset_kinds();

struct Batch {
  Tensor ids = {};                         // int64 [B]
  Tensor images = {};                      // float32 [B, C, H, W] in [-1, 1]; undefined where only latents are cached
  Tensor labels = {};                      // int64 [B]; -1 where unknown
  std::vector<std::string> captions = {};  // B of them
  Tensor epochs = {};                      // int64 [B]: of the sample's own bucket; 0 outside a loader
  Tensor micro = {};                       // float32 [B, 6]: h_orig, w_orig, c_top, c_left, h_tgt, w_tgt
  Tensor aesthetic = {};                   // float32 [B]; kNoScore where there is none
  Tensor latent_mean = {}, latent_std = {};  // float32 [B, C, h, w], or undefined
  Tensor context = {}, pooled = {};          // float32 [B, L, D], [B, P], or undefined
  int64_t size() const;
  Batch slice(int64_t begin, int64_t end) const;  // views
  Batch to(at::Device device) const;
};
// Samples of one size. `epochs`: one a sample, or none.
Batch collate(std::span<const Sample> samples, std::span<const int64_t> epochs = {});

}  // namespace fewstep
