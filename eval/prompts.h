// Which captions a protocol asks the model for: a list that is chosen once, written out, and named by its hash.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "datasets/coco_captions.h"

namespace fewstep::eval {

struct Prompt {
  int64_t caption_id = 0, image_id = 0;  // the noise of its image is keyed by (seed, caption_id)
  std::string file_name;                 // of the real image
  std::string text;
};

enum class CaptionRule { first, longest, sjd, seeded };
//   first    the image's first caption in the file
//   longest  in code points; the first of equals
//   sjd      as SJD's MSCOCOPromptBench chooses: its "longest so far" is never reset, so every image takes the caption
//            index of the record holder so far, in the order of the file (an image with fewer captions: its last)
//   seeded   by (seed, image id)
enum class PromptDraw { images, captions };  // N images with one caption each, or N of all captions

struct PromptRule {
  CaptionRule captions = CaptionRule::first;
  PromptDraw draw = PromptDraw::images;
  int64_t count = 0;  // 0: all
  uint64_t seed = 0;  // of the draw and of `seeded`
};

// Sorted by caption id. Images without a caption cannot be asked for. ConfigError when fewer than `count` are there.
std::vector<Prompt> choose_prompts(const std::vector<CocoImage>& images, const PromptRule& rule);
// One caption a line, as DMD2 publishes its list of 30,000: caption ids are line numbers, from 1. Lines are trimmed and
// empty ones left out.
std::vector<Prompt> read_prompt_lines(const std::filesystem::path& path);

// SHA-256 over the lines "caption id, text": what two evaluations must share to be compared prompt by prompt.
std::string prompts_sha256(const std::vector<Prompt>& prompts);
// A line of JSON each: caption_id, image_id, file_name, text. Atomic.
void write_prompts(const std::filesystem::path& path, const std::vector<Prompt>& prompts);

}  // namespace fewstep::eval
