// From images to features: decoding and preparing in threads, the network in the caller's, results in the order of the
// source.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "eval/encoder.h"
#include "eval/image_source.h"

namespace fewstep::eval {

struct ExtractionOptions {
  int64_t batch = 32;
  int64_t threads = 1;           // that decode and prepare
  bool skip_unreadable = false;  // count and go on; else the first one is an error
  std::string label = "images";  // of the progress bar
};
struct Extraction {
  int64_t images = 0;
  int64_t constant = 0;                 // of one flat colour: black images of a broken VAE count, they are not dropped
  int64_t grey = 0;                     // of one channel, read as three
  std::vector<std::string> unreadable;  // path: reason
  std::vector<size_t> unreadable_places;  // their places in the source, rising
};
// `sink` gets every batch in order, the last one as short as it is. DataError: unreadable file (unless skipped), none at
// all that can be read.
Extraction extract(const ImageSource& source, const ImageEncoder& encoder, const ExtractionOptions& options,
                   const std::function<void(const Encoded&)>& sink);

}  // namespace fewstep::eval
