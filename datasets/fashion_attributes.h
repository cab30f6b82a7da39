// Captions for Fashion-MNIST from what can be measured in the pixels, so that samples can be checked against their
// prompts exactly: GenEval (Ghosh et al. 2023) in miniature.
//
//   tone    dark | mid | bright   mean intensity of the garment's interior; terciles over the whole train file, so that
//                                 "bright" means the same for every class
//   height  short | long          vertical extent, against the median of its class
//   width   narrow | wide         horizontal extent, against the median of its class
//
// The extent is the length of a uniform bar with the same spread, sqrt(12 variance + 1) of the rows (columns) weighted
// by intensity. Not the bounding box: the photographs are scaled until their longer side is 28 pixels, so the box is
// exactly 28 rows high for 80 % of the clothes (and 28 columns wide for half of the shoes), and one stray pixel of a
// generator moves it. A blur of 0.7 pixels with noise of 8 grey levels keeps 98 % of these extents and 85 % of the
// tones.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/json.h"
#include "src/tensor/fwd.h"

namespace fewstep {

inline constexpr int64_t kFashionClasses = 10;
using Attributes = std::map<std::string, std::string>;  // {"tone": "dark", "height": "long", "width": "wide"}

std::span<const std::string_view> fashion_class_names();  // natural words, by label: "t-shirt", ..., "ankle boot"
// tone, height, width with their words.
struct AttributeKind {
  std::string_view name;
  std::vector<std::string_view> words;
};
std::span<const AttributeKind> fashion_attribute_kinds();

struct Measurement {
  double tone = 0, height = 0, width = 0;  // grey levels, pixels, pixels; all 0 for an empty picture
};
// Grey values [height * width], row-major. Integer sums: exact on every machine.
Measurement measure_garment(std::span<const uint8_t> pixels, int64_t height, int64_t width);

struct AttributeThresholds {
  double tone_dark = 0, tone_bright = 0;                  // dark < tone_dark <= mid < tone_bright <= bright
  std::array<double, kFashionClasses> height{}, width{};  // long / wide: at or above
};
// Terciles and per-class medians. Ties go up: a value equal to its threshold is bright, long, wide.
AttributeThresholds find_thresholds(std::span<const Measurement> measured, std::span<const uint8_t> labels);
Attributes name_attributes(const Measurement& measured, int64_t label, const AttributeThresholds& thresholds);
// image: uint8 [1|3, H, W] (or [H, W]); of colour the channels' mean is measured. What `attribute_accuracy` calls on
// samples.
Attributes measure_attributes(const Tensor& image, int64_t label, const AttributeThresholds& thresholds);

Json to_json(const AttributeThresholds& thresholds);  // attributes.json of a data set or a model
AttributeThresholds thresholds_from_json(const Json& json, std::string_view origin);  // DataError

// Caption templates: three sentence forms times every subset of the attributes, so each attribute is named by exactly
// half.
int64_t caption_template_count();
std::string write_caption(int64_t form, int64_t label, const Attributes& attributes);
struct ParsedCaption {
  int64_t label = -1;
  Attributes named;
};
// The inverse for any wording: class and attribute words are looked for, the rest is ignored. nullopt without exactly
// one class, or with contradictory words.
std::optional<ParsedCaption> parse_caption(std::string_view caption);

// Class-attribute pairs that training never sees: "bright sneaker", "wide dress".
struct HeldOutPair {
  int64_t label;
  std::string_view attribute, word;
};
std::span<const HeldOutPair> held_out_pairs();
bool is_held_out(int64_t label, const Attributes& attributes);
std::vector<std::string> compositional_prompts();  // all captions that name a held-out pair

}  // namespace fewstep
