// Captions of Fashion-MNIST: templates, their inverse, and the pairs held out of training.
#include <algorithm>
#include <set>

#include "datasets/fashion_attributes.h"
#include "src/base/error.h"
#include "src/base/text.h"

namespace fewstep {
namespace {

constexpr int64_t kSubsets = 8;  // of {tone, height, width}: bit k names attribute k
constexpr int64_t kSentences = 3;
constexpr std::string_view kPlural = "trousers";

// "a dark long dress", "an ankle boot", "bright trousers".
std::string noun_phrase(std::span<const std::string> words, std::string_view name) {
  std::string phrase;
  for (const std::string& word : words) phrase += word + " ";
  phrase += name;
  if (name == kPlural) return phrase;
  const bool vowel = std::string_view("aeiou").find(phrase[0]) != std::string_view::npos;
  return (vowel ? "an " : "a ") + phrase;
}

// "dark", "dark and long", "dark, long and wide".
std::string enumerate(std::span<const std::string> words) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i) text += (i == 0 ? "" : i + 1 == words.size() ? " and " : ", ") + words[i];
  return text;
}

}  // namespace

int64_t caption_template_count() { return kSubsets * kSentences; }

std::string write_caption(int64_t form, int64_t label, const Attributes& attributes) {
  FEW_CHECK(form >= 0 && form < caption_template_count(), "caption template {} of {}", form, caption_template_count());
  if (label < 0 || label >= kFashionClasses) fail("label {} is not a Fashion-MNIST class (0 to 9)", label);
  const std::string_view name = fashion_class_names()[static_cast<size_t>(label)];
  std::vector<std::string> words;
  int64_t bit = 1;
  for (const AttributeKind& kind : fashion_attribute_kinds()) {
    if ((form % kSubsets) & bit) words.push_back(attributes.at(std::string(kind.name)));
    bit <<= 1;
  }
  switch (form / kSubsets) {
    case 0:
      return noun_phrase(words, name);
    case 1:
      return "a photo of " + noun_phrase(words, name);
    default: {
      const std::string start = (name == kPlural ? "these are " : "this is ") + noun_phrase({}, name);
      return words.empty() ? start : start + ", " + enumerate(words);
    }
  }
}

std::optional<ParsedCaption> parse_caption(std::string_view caption) {
  std::vector<std::string> words;
  std::string word;
  for (char c : to_lower(caption) + " ") {
    if ((c >= 'a' && c <= 'z') || c == '-') {
      word += c;
    } else if (!word.empty()) {
      words.push_back(std::exchange(word, {}));
    }
  }
  std::set<int64_t> labels;
  for (size_t label = 0; label < kFashionClasses; ++label) {
    const std::vector<std::string> name = split(fashion_class_names()[label], ' ');
    if (std::search(words.begin(), words.end(), name.begin(), name.end()) != words.end())
      labels.insert(static_cast<int64_t>(label));
  }
  if (labels.size() != 1) return std::nullopt;
  ParsedCaption parsed{*labels.begin(), {}};
  for (const AttributeKind& kind : fashion_attribute_kinds())
    for (std::string_view value : kind.words) {
      if (std::find(words.begin(), words.end(), value) == words.end()) continue;
      if (!parsed.named.emplace(kind.name, value).second) return std::nullopt;
    }
  return parsed;
}

std::span<const HeldOutPair> held_out_pairs() {
  // One of tone and one of extent; both leave the class and the word well represented elsewhere in training.
  static constexpr std::array<HeldOutPair, 2> pairs = {HeldOutPair{7, "tone", "bright"},
                                                       HeldOutPair{3, "width", "wide"}};
  return pairs;
}

bool is_held_out(int64_t label, const Attributes& attributes) {
  return std::any_of(held_out_pairs().begin(), held_out_pairs().end(), [&](const HeldOutPair& pair) {
    const auto found = attributes.find(std::string(pair.attribute));
    return pair.label == label && found != attributes.end() && found->second == pair.word;
  });
}

std::vector<std::string> compositional_prompts() {
  std::set<std::string> prompts;  // sorted, without repeats
  for (const HeldOutPair& pair : held_out_pairs())
    for (int64_t form = 0; form < caption_template_count(); ++form)
      for (std::string_view tone : fashion_attribute_kinds()[0].words)
        for (std::string_view height : fashion_attribute_kinds()[1].words)
          for (std::string_view width : fashion_attribute_kinds()[2].words) {
            const std::string caption = write_caption(
                form, pair.label,
                {{"tone", std::string(tone)}, {"height", std::string(height)}, {"width", std::string(width)}});
            if (const auto parsed = parse_caption(caption); is_held_out(pair.label, parsed->named))
              prompts.insert(caption);
          }
  return {prompts.begin(), prompts.end()};
}

}  // namespace fewstep
