#include "eval/prompts.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/hash.h"
#include "src/base/json.h"
#include "src/base/philox.h"
#include "src/base/text.h"

namespace fewstep::eval {
namespace {

size_t code_points(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

// The caption of each image in turn; `record` is the state of the rule `sjd`.
class Chooser {
 public:
  explicit Chooser(const PromptRule& rule) : rule_(rule) {}
  const CocoCaption& operator()(const CocoImage& image) {
    const std::vector<CocoCaption>& all = image.captions;
    switch (rule_.captions) {
      case CaptionRule::first:
        return all.front();
      case CaptionRule::longest:
        return *std::max_element(all.begin(), all.end(), [](const auto& a, const auto& b) {
          return code_points(a.text) < code_points(b.text);
        });
      case CaptionRule::sjd:
        for (size_t i = 0; i < all.size(); ++i)
          if (const size_t length = code_points(all[i].text); length > record_) record_ = length, index_ = i;
        return all[std::min(index_, all.size() - 1)];
      case CaptionRule::seeded:
        break;
    }
    const uint64_t draw = philox_u64(rule_.seed, static_cast<uint64_t>(image.id), 1);
    return all[static_cast<size_t>(draw % all.size())];
  }

 private:
  PromptRule rule_;
  size_t record_ = 0, index_ = 0;
};

// The `count` of `all` with the smallest seeded keys: the same whatever the order of the file, and a shorter list is a
// part of a longer one.
std::vector<Prompt> draw(std::vector<Prompt> all, int64_t count, uint64_t seed, int64_t Prompt::*id) {
  const auto key = [&](const Prompt& p) { return std::pair(philox_u64(seed, static_cast<uint64_t>(p.*id), 2), p.*id); };
  std::sort(all.begin(), all.end(), [&](const Prompt& a, const Prompt& b) { return key(a) < key(b); });
  all.resize(static_cast<size_t>(count));
  return all;
}

}  // namespace

std::vector<Prompt> choose_prompts(const std::vector<CocoImage>& images, const PromptRule& rule) {
  std::vector<Prompt> all;
  Chooser choose(rule);
  const auto add = [&](const CocoImage& image, const CocoCaption& caption) {
    all.push_back({caption.id, image.id, image.file_name, caption.text});
  };
  for (const CocoImage& image : images) {
    if (image.captions.empty()) continue;
    if (rule.draw == PromptDraw::images)
      add(image, choose(image));
    else
      for (const CocoCaption& caption : image.captions) add(image, caption);
  }
  const auto available = static_cast<int64_t>(all.size());
  if (rule.count > available)
    fail<ConfigError>("the protocol asks for {} prompts, the captions file has {} ({})", rule.count, available,
                      rule.draw == PromptDraw::images ? "images with a caption" : "captions");
  if (rule.count > 0 && rule.count < available)
    all = draw(std::move(all), rule.count, rule.seed,
               rule.draw == PromptDraw::images ? &Prompt::image_id : &Prompt::caption_id);
  std::sort(all.begin(), all.end(), [](const Prompt& a, const Prompt& b) { return a.caption_id < b.caption_id; });
  for (size_t i = 1; i < all.size(); ++i)
    if (all[i].caption_id == all[i - 1].caption_id)
      fail<DataError>("caption id {} is given twice; samples are named and seeded by it", all[i].caption_id);
  return all;
}

std::vector<Prompt> read_prompt_lines(const std::filesystem::path& path) {
  std::vector<Prompt> prompts;
  int64_t number = 0;
  for (const std::string& line : split(read_text(path), '\n')) {
    ++number;
    if (!trim(line).empty()) prompts.push_back({number, 0, "", std::string(trim(line))});
  }
  if (prompts.empty()) fail<DataError>("{}: no captions in it (one a line is expected)", path.string());
  return prompts;
}

std::string prompts_sha256(const std::vector<Prompt>& prompts) {
  Sha256 hash;
  for (const Prompt& p : prompts) {
    const std::string line = fmt::format("{} {}\n", p.caption_id, p.text);
    hash.update(line.data(), line.size());
  }
  return hash.hex();
}

void write_prompts(const std::filesystem::path& path, const std::vector<Prompt>& prompts) {
  std::string text;
  for (const Prompt& p : prompts)
    text +=
        Json{{"caption_id", p.caption_id}, {"image_id", p.image_id}, {"file_name", p.file_name}, {"text", p.text}}.dump(
            -1, ' ', false, Json::error_handler_t::replace) +
        "\n";
  write_text_atomic(path, text);
}

}  // namespace fewstep::eval
