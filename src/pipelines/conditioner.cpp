#include "src/pipelines/conditioner.h"

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/table.h"
#include "src/models/json_fields.h"
#include "src/pipelines/conditioner_class.h"
#include "src/pipelines/conditioner_sdxl.h"
#include "src/pipelines/conditioner_text.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep::pipelines {
namespace fs = std::filesystem;
namespace {

constexpr config::Choice kTextNulls[] = {{"zeros", static_cast<int>(NullValue::zeros)},
                                         {"empty_prompt", static_cast<int>(NullValue::empty_prompt)}};
constexpr config::Choice kNumberNulls[] = {{"zeros", static_cast<int>(NullValue::zeros)},
                                           {"int_zero", static_cast<int>(NullValue::int_zero)}};

// One group of the numbers: its columns of `micro`, its switch and its drop.
struct NumberGroup {
  int64_t first, count;
  bool MicroSwitches::*on;
  Tensor ConditionDrop::*drop;
};
constexpr NumberGroup kNumberGroups[] = {{0, 2, &MicroSwitches::size, &ConditionDrop::size},
                                         {2, 2, &MicroSwitches::crop, &ConditionDrop::crop},
                                         {4, 2, &MicroSwitches::target, &ConditionDrop::target}};

// Rows of `x` [B, ...] that are dropped become the one of `null` [1, ...].
Tensor replace_rows(const Tensor& x, const Tensor& drop, const Tensor& null) {
  if (!drop.defined() || !x.defined()) return x;
  std::vector<int64_t> shape(static_cast<size_t>(x.dim()), 1);
  shape[0] = x.size(0);
  const Tensor rows = drop.to(x.device()).view(shape);
  return null.defined() ? at::where(rows, null.to(x.options()), x) : x.masked_fill(rows, 0);
}

// Scores below 0 are those of samples that have none.
Tensor or_score(const Tensor& given, double own) { return given.masked_fill(given.lt(0), own); }

}  // namespace

int64_t ConditionInput::size() const {
  if (!captions.empty()) return static_cast<int64_t>(captions.size());
  for (const Tensor* t : {&labels, &micro, &context, &pooled, &aesthetic})
    if (t->defined()) return t->size(0);
  fail("conditions of no samples: neither captions, labels, numbers nor embeddings");
}

void describe(config::Visitor& v, ConditionDropout& c) {
  v.field("text", c.text, "probability that a sample loses its text or class: what guidance needs", config::kUnit);
  v.field("pooled", c.pooled, "of the pooled text, drawn by itself; -1: together with the text", {-1, 1});
  v.field("size", c.size, "of the original size", config::kUnit);
  v.field("crop", c.crop, "of the crop's corner", config::kUnit);
  v.field("target", c.target, "of the target size", config::kUnit);
  v.field("aesthetic", c.aesthetic, "of the aesthetic score", config::kUnit);
}

ConditionDrop draw_drop(const ConditionDropout& rates, const Tensor& ids, uint64_t seed, int64_t step) {
  const Tensor drawn = uniform_by_id(ids, 6, seed, Stream::dropout, step);
  const auto drop = [&](int64_t column, double rate) { return rate > 0 ? drawn.select(1, column) < rate : Tensor(); };
  ConditionDrop out;
  out.text = drop(0, rates.text), out.pooled = rates.pooled < 0 ? out.text : drop(1, rates.pooled);
  out.size = drop(2, rates.size), out.crop = drop(3, rates.crop), out.target = drop(4, rates.target);
  out.aesthetic = drop(5, rates.aesthetic);
  return out;
}

void describe(config::Visitor& v, MicroSwitches& c) {
  v.field("size", c.size, "the network is told the original height and width");
  v.field("crop", c.crop, "the network is told the crop's top and left, in pixels of the resized image");
  v.field("target", c.target, "the network is told the height and width it shall make (several aspect ratios)");
  v.field("aesthetic", c.aesthetic, "the network is told an aesthetic score (SDXL's refiner)");
}

void describe_settings(config::Visitor& v, ConditioningSettings& c, bool with_text) {
  v.field("micro", c.micro, "which numbers the network is told, in this order");
  if (with_text)
    v.field("null_text", c.null_text, "what a dropped text becomes: zeros, or the embedding of an empty prompt",
            kTextNulls);
  v.field("null_numbers", c.null_numbers, "what a dropped number becomes: a zero embedding, or the number 0",
          kNumberNulls);
  v.field("aesthetic", c.aesthetic, "score of samples without one, and at inference", config::kNonNegative);
  v.field("negative_aesthetic", c.negative_aesthetic, "score of the unconditional branch of guidance", config::kNonNegative);
}

MicroNumbers micro_numbers(const ConditioningSettings& settings, const ConditionInput& input,
                           const ConditionDrop& drop) {
  MicroNumbers out;
  if (settings.micro.count() == 0) return out;
  const int64_t B = input.size();
  const auto options =
      at::TensorOptions(at::kFloat).device(input.micro.defined() ? input.micro.device() : at::Device(at::kCPU));
  std::vector<Tensor> numbers, kept;
  bool masked = false;
  const auto add = [&](Tensor values, const Tensor& dropped) {  // [B, n]
    const Tensor keep = dropped.defined() ? dropped.logical_not().to(options).view({B, 1}) : at::ones({B, 1}, options);
    const bool zeros = dropped.defined() && settings.null_numbers == NullValue::zeros;
    if (dropped.defined() && !zeros) values = values * keep;
    masked = masked || zeros;
    kept.push_back((zeros ? keep : at::ones({B, 1}, options)).expand_as(values));
    numbers.push_back(values);
  };
  for (const NumberGroup& group : kNumberGroups) {
    if (!(settings.micro.*group.on)) continue;
    if (!input.micro.defined())
      fail<DataError>("this model is told sizes and crops, and the samples come without them (Batch::micro)");
    FEW_CHECK(input.micro.dim() == 2 && input.micro.size(0) == B && input.micro.size(1) == 6,
              "micro-conditioning of {} samples: {}", B, c10::str(input.micro.sizes()));
    add(input.micro.to(options).narrow(1, group.first, group.count), drop.*group.drop);
  }
  if (settings.micro.aesthetic) {
    const Tensor& given = input.aesthetic;
    const Tensor told = given.defined() ? given.to(options).view({B, 1}) : at::full({B, 1}, -1.0, options);
    add(or_score(told, settings.aesthetic), drop.aesthetic);
  }
  out.numbers = at::cat(numbers, 1);
  if (masked) out.mask = at::cat(kept, 1);
  return out;
}

Tensor micro_rows(int64_t batch, int64_t height, int64_t width, std::span<const int64_t> original,
                  std::span<const int64_t> crop, std::span<const int64_t> target) {
  std::vector<float> row = {static_cast<float>(height), static_cast<float>(width), 0, 0,
                            static_cast<float>(height), static_cast<float>(width)};
  const auto put = [&](std::span<const int64_t> pair, size_t at, const char* what) {
    if (pair.empty()) return;
    if (pair.size() != 2)
      fail<ConfigError>("{}: two numbers are expected (height, width or top, left), got {}", what, pair.size());
    row[at] = static_cast<float>(pair[0]), row[at + 1] = static_cast<float>(pair[1]);
  };
  put(original, 0, "original_size"), put(crop, 2, "crop"), put(target, 4, "target_size");
  return at::tensor(row, at::kFloat).expand({batch, 6}).contiguous();
}

// Dropped texts: with `zeros` the embedding is erased, with `empty_prompt` it becomes that of "", which a text encoder
// in training learns too (its gradient flows through the one row of "").
Conditioner::Encoded Conditioner::encode_dropped(const ConditionInput& input, const ConditionDrop& drop) const {
  Encoded e = input.context.defined() ? Encoded{input.context, input.pooled} : encode(input);
  if (!drop.text.defined() && !drop.pooled.defined()) return e;
  const Encoded null = settings_.null_text == NullValue::empty_prompt ? encode_empty() : Encoded{};
  e.context = replace_rows(e.context, drop.text, null.context);
  e.pooled = replace_rows(e.pooled, drop.pooled.defined() ? drop.pooled : drop.text, null.pooled);
  return e;
}

models::UNetConditions Conditioner::operator()(const ConditionInput& input, const ConditionDrop& drop) const {
  const Encoded e = encode_dropped(input, drop);
  const MicroNumbers micro = micro_numbers(settings_, input, drop);
  models::UNetConditions out;
  out.context = e.context;
  if (pooled_width() > 0) out.pooled = e.pooled;
  const at::Device device = e.context.device();
  if (micro.numbers.defined()) out.numbers = micro.numbers.to(device);
  if (micro.mask.defined()) out.number_mask = micro.mask.to(device);
  return out;
}

models::UNetConditions Conditioner::null(const ConditionInput& like, NullScope scope) const {
  const int64_t B = like.size();
  const Tensor all = at::ones({B}, at::kBool);
  ConditionInput input;
  input.micro = like.micro;
  input.aesthetic = like.aesthetic.defined() ? or_score(like.aesthetic, settings_.negative_aesthetic)
                                             : at::full({B}, settings_.negative_aesthetic, at::kFloat);
  const Encoded null = encode_empty();
  const auto rows = [&](const Tensor& x) {
    if (!x.defined()) return x;
    std::vector<int64_t> shape = x.sizes().vec();
    shape[0] = B;
    return (settings_.null_text == NullValue::zeros ? at::zeros_like(x) : x).expand(shape).contiguous();
  };
  input.context = rows(null.context), input.pooled = rows(null.pooled);
  ConditionDrop drop;
  if (scope == NullScope::all) drop.size = drop.crop = drop.target = drop.aesthetic = all;
  return (*this)(input, drop);
}

const std::vector<std::string>& Conditioner::class_names() const {
  static const std::vector<std::string> none;
  return none;
}

Json Conditioner::own_config() const { return Json::object(); }

namespace {

Json settings_json(const ConditioningSettings& s) {
  const auto name = [](NullValue value) {
    return value == NullValue::zeros ? "zeros" : value == NullValue::empty_prompt ? "empty_prompt" : "int_zero";
  };
  return {
      {"micro",
       {{"size", s.micro.size}, {"crop", s.micro.crop}, {"target", s.micro.target}, {"aesthetic", s.micro.aesthetic}}},
      {"null_text", name(s.null_text)},
      {"null_numbers", name(s.null_numbers)},
      {"aesthetic", s.aesthetic},
      {"negative_aesthetic", s.negative_aesthetic}};
}

NullValue null_from(const models::JsonDataFields& config, const char* key, std::span<const config::Choice> choices) {
  const std::string name = config.value(key, "zeros");
  return static_cast<NullValue>(find_entry(choices, name, fmt::format("{} in {}", key, config.where())).value);
}

ConditioningSettings settings_from(const models::JsonDataFields& config) {
  ConditioningSettings s;
  if (const Json* micro = config.find("micro")) {
    const models::JsonDataFields switches(*micro, config.where() + ": micro");
    switches.get("size", s.micro.size), switches.get("crop", s.micro.crop);
    switches.get("target", s.micro.target), switches.get("aesthetic", s.micro.aesthetic);
  }
  s.null_text = null_from(config, "null_text", kTextNulls);
  s.null_numbers = null_from(config, "null_numbers", kNumberNulls);
  config.get("aesthetic", s.aesthetic), config.get("negative_aesthetic", s.negative_aesthetic);
  return s;
}

template <class Config>
std::unique_ptr<ConditionerConfig> make_conditioner_config() {
  return std::make_unique<Config>();
}

constexpr ConditionerKind kConditioners[] = {
    {"class", make_conditioner_config<ClassConditionerConfig>, load_class_conditioner},
    {"text", make_conditioner_config<TextConditionerConfig>, load_text_conditioner},
    {"sdxl", make_conditioner_config<SdxlConditionerConfig>, load_sdxl_conditioner},
};

}  // namespace

std::span<const ConditionerKind> conditioner_kinds() { return kConditioners; }

void Conditioner::save(const fs::path& model_folder) const {
  Json config = {{"_class_name", "Conditioner"}, {"kind", std::string(kind())}};
  config.update(settings_json(settings_));
  config.update(own_config());
  make_directories(model_folder / "conditioner");
  write_json(model_folder / "conditioner" / "conditioner_config.json", config);
  save_components(model_folder);
}

std::unique_ptr<Conditioner> Conditioner::load(const fs::path& folder, at::Device device) {
  const fs::path path = folder / "conditioner" / "conditioner_config.json";
  std::unique_ptr<Conditioner> out;
  if (!fs::exists(path)) {
    out = load_diffusers_conditioner(folder);
  } else {
    const Json config = read_json(path);
    const models::JsonDataFields fields(config, path.string());
    const ConditionerKind& kind = find_entry(conditioner_kinds(), fields.value("kind", ""),
                                             fmt::format("kind of conditioner in {}", path.string()));
    out = kind.load(folder, config, settings_from(fields));
  }
  out->to(device);
  return out;
}

void check_conditioning(const models::UNet2DConfig& unet, const Conditioner& c, std::string_view where) {
  if (!unet.has_cross_attention())
    fail<ConfigError>("{}: the network has no cross attention (CrossAttn blocks): {} would never reach it", where,
                      c.description());
  if (unet.cross_attention_dim != c.context_width())
    fail<ConfigError>("{}: the network attends to contexts of width {} (cross_attention_dim), {} gives {}", where,
                      unet.cross_attention_dim, c.description(), c.context_width());
  const bool added = c.pooled_width() > 0 || c.numbers() > 0;
  const int64_t given = c.pooled_width() + c.numbers() * unet.addition_time_embed_dim;
  if (unet.addition_embed_type != (added ? "text_time" : "") ||
      (added && unet.projection_class_embeddings_input_dim != given))
    fail<ConfigError>(
        "{}: the network takes a vector of {} values beside the context, {} gives {} (pooled text {} + {} numbers of "
        "{}); switch the groups of 'micro' that the network was made for",
        where, unet.addition_embed_type.empty() ? 0 : unet.projection_class_embeddings_input_dim, c.description(),
        given, c.pooled_width(), c.numbers(), unet.addition_time_embed_dim);
}

void fit_conditioning(models::UNet2DConfig& unet, const Conditioner& c) {
  unet.cross_attention_dim = c.context_width();
  const bool added = c.pooled_width() > 0 || c.numbers() > 0;
  unet.addition_embed_type = added ? "text_time" : "";
  unet.projection_class_embeddings_input_dim =
      added ? c.pooled_width() + c.numbers() * unet.addition_time_embed_dim : 0;
}

}  // namespace fewstep::pipelines
