// How published numbers on COCO are measured. A protocol fixes everything that moves a number; what it fixes cannot be
// set, and numbers of different protocols are never put into one table.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "eval/prompts.h"

namespace fewstep::eval {

enum class ReferenceImages { all, chosen };  // every image of the file, or those of the chosen captions

struct Protocol {
  std::string name;
  std::string meaning;
  std::string annotations;  // the official file it is defined on, as a hint and in errors; "" any
  int64_t images = 0;       // that file has so many; 0: any number
  PromptRule prompts;
  ReferenceImages reference = ReferenceImages::all;
  int64_t side = 0;                // both sides: central square, Lanczos on bytes to side x side; 0: as they are
  std::string pipeline = "clean";  // of the InceptionV3
  std::string clip_definition = "hessel";  // name of clip_score_kinds()
  bool patch = false;                      // patch-FID as well
  bool shared_noise = false;               // one noise for every prompt (MLPerf)
  // Published bounds of acceptance; 0, 0: none.
  double fid_low = 0, fid_high = 0, clip_low = 0, clip_high = 0;
};

// coco2017-5k, coco2014-30k, dmd2-10k, sjd-coco2017, mlperf-sdxl.
std::span<const Protocol> protocols();
const Protocol& find_protocol(std::string_view name);  // ConfigError with the known names

// "coco2017-5k", or what is missing to it: "coco2017-5k (50 of 5000 prompts)". The name of a part is another name: it
// shares no table with the whole.
std::string protocol_label(const Protocol& protocol, int64_t prompts, int64_t images);

}  // namespace fewstep::eval
