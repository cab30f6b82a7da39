#include "eval/protocols.h"

#include "src/base/error.h"
#include "src/base/table.h"

namespace fewstep::eval {
namespace {

// Sources: the repositories of GigaGAN (evaluation/), DMD2 and MLPerf inference (text_to_image), and SJD2's section 4.
std::vector<Protocol> make_protocols() {
  std::vector<Protocol> all;
  all.push_back(
      {.name = "coco2017-5k",
       .meaning = "COCO val2017: the first caption of each of 5,000 images, against those images, as they are",
       .annotations = "captions_val2017.json",
       .images = 5000,
       .prompts = {.captions = CaptionRule::first, .count = 5000},
       .reference = ReferenceImages::chosen});
  all.push_back({.name = "coco2014-30k",
                 .meaning = "zero-shot COCO of GigaGAN and DMD2: 30,000 images of val2014 with a drawn caption each, "
                            "central square and Lanczos to 256, against all 40,504 images",
                 .annotations = "captions_val2014.json",
                 .images = 40504,
                 .prompts = {.captions = CaptionRule::seeded, .count = 30000},
                 .side = 256,
                 .clip_definition = "gigagan"});
  all.push_back(
      {.name = "dmd2-10k",
       .meaning = "DMD2's SDXL tables: 10,000 images of val2014 at 512 pixels against themselves, with patch-FID",
       .annotations = "captions_val2014.json",
       .images = 40504,
       .prompts = {.captions = CaptionRule::seeded, .count = 10000},
       .reference = ReferenceImages::chosen,
       .side = 512,
       .clip_definition = "gigagan",
       .patch = true});
  all.push_back({.name = "sjd-coco2017",
                 .meaning = "SJD and SJD2: val2017 with the captions of SJD's MSCOCOPromptBench",
                 .annotations = "captions_val2017.json",
                 .images = 5000,
                 .prompts = {.captions = CaptionRule::sjd, .count = 5000},
                 .reference = ReferenceImages::chosen,
                 .clip_definition = "mlperf"});
  all.push_back({.name = "mlperf-sdxl",
                 .meaning =
                     "MLPerf inference, SDXL: 5,000 captions of val2014, one noise for all, pytorch-fid on full-size "
                     "images against val2014, with tolerances",
                 .annotations = "captions_val2014.json",
                 .images = 40504,
                 .prompts = {.captions = CaptionRule::first, .count = 5000},
                 .pipeline = "pytorch-fid",
                 .clip_definition = "mlperf",
                 .shared_noise = true,
                 .fid_low = 23.01085758,
                 .fid_high = 23.95007626,
                 .clip_low = 31.68631873,
                 .clip_high = 31.81331801});
  return all;
}

}  // namespace

std::span<const Protocol> protocols() {
  static const std::vector<Protocol> all = make_protocols();
  return all;
}

const Protocol& find_protocol(std::string_view name) { return find_entry(protocols(), name, "protocol"); }

std::string protocol_label(const Protocol& p, int64_t prompts, int64_t images) {
  std::string missing;
  if (p.prompts.count > 0 && prompts != p.prompts.count)
    missing = fmt::format("{} of {} prompts", prompts, p.prompts.count);
  if (p.images > 0 && images != p.images)
    missing += fmt::format("{}{} of {} images", missing.empty() ? "" : ", ", images, p.images);
  return missing.empty() ? p.name : fmt::format("{} ({})", p.name, missing);
}

}  // namespace fewstep::eval
