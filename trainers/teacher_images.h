// The images a teacher made for training samples, in one HDF5 file that `fewstep data teacher` writes, and which places of a batch
// hold them on a discriminator's real side.
//
// Layout, for every size that occurs:
//   CxHxW/images    uint8 [n, C, H, W]
//   CxHxW/ids       int64 [n]   of the training samples they were made for
//   CxHxW/labels    int64 [n]   their classes, -1 where unknown
//   CxHxW/captions  text [n]    the captions they were made from
// and the file attributes format, facts (JSON), key (its SHA-256), sizes (JSON).
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "datasets/dataset.h"
#include "src/base/json.h"
#include "src/io/hdf5.h"
#include "src/pipelines/pipeline.h"
#include "src/tensor/tensor.h"

namespace fewstep {

// What made the images: files of equal key hold the same ones.
struct TeacherFacts {
  int64_t version = 1;
  std::string model = {}, model_name = {};                  // model_identity() of the folder; the folder as it was named
  std::string source = {}, source_fingerprint = {}, split = {};  // of the data set
  int64_t count = 0;                              // samples, evenly spread over it
  std::string options = {};                            // "guidance=1.5 sampling_steps=50": GenerateOptions that are not the defaults
  int64_t seed = 0;                               // of the noise, with the sample's id, and of the captions' choice
  Json to_json() const;
  static TeacherFacts from_json(const Json& json, std::string_view where);  // DataError
  std::string key() const;                        // SHA-256 of all but the names
  std::string command(const std::filesystem::path& out) const;  // `fewstep data teacher ...` that makes such a file
};
// SHA-256 over the files of every component of a model folder, the scheduler's included; an adapter that lies beside the merged
// network is left out. Where the folder lies does not matter.
std::string model_identity(const std::filesystem::path& model_folder);

struct TeacherRow {
  Tensor image;  // uint8 [C, H, W]
  int64_t id = 0, label = -1;
  std::string caption = {};
};

// Writes in parts: each full part is a file of its own in `<out>.parts/`, so that an interrupted run goes on behind the last one.
class TeacherImageWriter {
 public:
  // ConfigError: `out` or parts of it are there and were made by something else; says what differs.
  TeacherImageWriter(std::filesystem::path out, TeacherFacts facts, int64_t part_rows);
  bool complete() const { return complete_; }  // `out` is there, of the same facts: nothing to do
  int64_t done() const { return done_; }       // rows in parts: go on with the next one
  void add(std::vector<TeacherRow> rows);      // in order
  void finish();                               // one file out of the parts, which are removed

 private:
  std::filesystem::path part(int64_t number) const;
  void write_part();
  std::filesystem::path out_;
  TeacherFacts facts_;
  int64_t part_rows_, parts_ = 0, done_ = 0;
  bool complete_ = false;
  std::vector<TeacherRow> rows_;  // of the part that is being filled
};

struct TeacherDrawing {
  int64_t count = 0;            // samples, evenly spread over the data set; 0: all
  int64_t seed = 0;
  int64_t part_rows = 512;      // images a part
  Split split = Split::train;
  std::string model_name = {};  // for messages
  pipelines::GenerateOptions sampling = {};  // height and width are those of the samples
};
// Draws an image for each of those samples, of its size and from its caption (class models: its class), with noise keyed by
// (seed, id). Goes on with what `out` has already. `progress` gets the images that are done, the first time those of an earlier
// run. ConfigError: more images than samples; `out` was made by something else.
TeacherFacts draw_teacher_images(const Dataset& dataset, const std::filesystem::path& model_folder, at::Device device,
                                 const TeacherDrawing& drawing, const std::filesystem::path& out,
                                 const std::function<void(int64_t done, int64_t total)>& progress = {});

class TeacherImages {
 public:
  // Files of up to `bytes_in_memory` of pixels are read once, of others the rows that are asked for. DataError: missing (names the
  // command that makes one), or not such a file.
  explicit TeacherImages(const std::filesystem::path& path, int64_t bytes_in_memory = int64_t{1} << 30);
  const TeacherFacts& facts() const { return facts_; }
  const std::filesystem::path& path() const { return path_; }
  int64_t size() const;
  // ConfigError naming both unless there are images of [C, H, W].
  void check_size(int64_t channels, int64_t height, int64_t width) const;
  // ConfigError naming both models unless `model_folder` made them.
  void check_teacher(const std::filesystem::path& model_folder) const;
  // Whether the ids of `dataset` are those of the samples that the images were made for.
  bool same_samples(const Dataset& dataset) const;

  struct Picked {
    Tensor images = {};                      // float32 [N, C, H, W] in [-1, 1]
    std::vector<std::string> captions = {};  // what they were made from
    Tensor labels = {};                      // int64 [N]
    int64_t same_sample = 0;                 // made for the very sample that was asked for
  };
  // For each id the image made for it (by_id), or where there is none image (id mod number of that size): always with the caption
  // of the image. ids: int64 [N].
  Picked pick(const Tensor& ids, at::IntArrayRef size, bool by_id) const;

 private:
  struct Group {
    std::string name;                           // "CxHxW"
    std::vector<int64_t> ids = {}, labels = {};
    std::vector<std::string> captions = {};
    std::unordered_map<int64_t, int64_t> row_of = {};
    Tensor images = {};                         // uint8 [n, C, H, W]; undefined: read when they are needed
  };
  const Group& group(at::IntArrayRef size) const;
  std::filesystem::path path_;
  TeacherFacts facts_;
  std::unique_ptr<io::H5File> file_;  // open while some group is not in memory
  std::vector<Group> groups_;
};

// Which places of a global batch of `batch_size` hold a real image on the real side: exactly round(share * batch_size) of them, drawn
// anew at every step from (seed, Stream::mix, step). positions: int64 [n] -> bool [n]. A function of the place alone: however
// the batch is shared out over ranks and micro-batches, the same samples are real.
Tensor real_places(const Tensor& positions, int64_t batch_size, double share, uint64_t seed, int64_t step);

}  // namespace fewstep
