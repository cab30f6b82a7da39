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

#include "src/config/visitor.h"
#include "src/tensor/tensor.h"

namespace fewstep {

struct Sample {
  int64_t id = 0;                                 // stable over runs: errors, logs and random streams name it
  Tensor image;                                   // uint8 [C, H, W]
  std::string caption;                            // the one chosen for this (seed, epoch)
  int64_t label = -1;                             // class, where the data set has classes
  std::map<std::string, std::string> attributes;  // e.g. {"tone": "dark", "height": "long"}; what captions may name
};

class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual int64_t size() const = 0;
  // Thread-safe. `epoch` chooses among captions and augmentations, keyed by (seed, epoch, id). DataError with the
  // place.
  virtual Sample get(int64_t index, uint64_t seed, int64_t epoch) const = 0;
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
  Tensor ids;                         // int64 [B]
  Tensor images;                      // float32 [B, C, H, W] in [-1, 1]
  Tensor labels;                      // int64 [B]; -1 where unknown
  std::vector<std::string> captions;  // B of them
  int64_t size() const;
  Batch slice(int64_t begin, int64_t end) const;  // views
  Batch to(at::Device device) const;
};
Batch collate(std::span<const Sample> samples);

}  // namespace fewstep
