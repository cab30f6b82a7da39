// What the diffusion network is told beside x_t and t: a text or a class, and the numbers of SDXL's micro-conditioning
// (Podell et al. 2023, arXiv 2307.01952, sec. 2.2 and 2.3).
//
//   class  a learned table of classes, one context token (the paper's ablation on ImageNet, table 2)
//   text   a small text encoder trained from scratch together with the network
//   sdxl   the frozen CLIP encoders of SDXL, of its refiner, or of Stable Diffusion 1.x
//
// The numbers are [h_orig, w_orig | c_top, c_left | h_target, w_target | aesthetic score], each group on or off. Crop
// corners count in pixels of the resized image.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/json.h"
#include "src/config/visitor.h"
#include "src/models/unet2d.h"
#include "src/nn/module.h"
#include "src/tensor/tensor.h"
#include "src/text/bpe.h"

namespace fewstep::pipelines {

// Of B samples. Undefined (or empty) is what a sample does not have; the conditioner says which it needs.
struct ConditionInput {
  std::vector<std::string> captions = {};
  Tensor labels = {};     // int64 [B]; of the class conditioner, else looked for in the captions
  Tensor micro = {};      // float32 [B, 6]: h_orig, w_orig, c_top, c_left, h_target, w_target
  Tensor aesthetic = {};  // float32 [B]; below 0 (or undefined: for every sample): the setting's score
  Tensor context = {};    // [B, L, D] and
  Tensor pooled = {};     // [B, P]: embeddings of the captions that were made before; undefined: made now
  int64_t size() const;  // B; Error when there is nothing to count
};

// What takes the place of a condition that was dropped. zeros: the embedding is zero (sgm). empty_prompt: texts only,
// the embedding of "". int_zero: numbers only, the number is 0, whose sinusoid is [1 ... 1 | 0 ... 0] (mosaicml).
enum class NullValue { zeros, empty_prompt, int_zero };

// Which samples lose which condition: bool [B] each; undefined: none does. `text` is the class of a class conditioner.
struct ConditionDrop {
  Tensor text = {}, pooled = {}, size = {}, crop = {}, target = {}, aesthetic = {};
};

// Probabilities, each condition drawn by itself; pooled < 0: together with the text.
struct ConditionDropout {
  double text = 0.1, pooled = -1, size = 0.1, crop = 0.1, target = 0.1, aesthetic = 0.1;
};
void describe(config::Visitor& v, ConditionDropout& c);
// Keyed by (seed, Stream::dropout, step, id): a condition's draws do not move when another one's rate changes.
// ids: int64 [B].
ConditionDrop draw_drop(const ConditionDropout& rates, const Tensor& ids, uint64_t seed, int64_t step);

struct MicroSwitches {  // in the order of the numbers
  bool size = true, crop = true, target = true, aesthetic = false;
  int64_t count() const { return 2 * (int64_t{size} + int64_t{crop} + int64_t{target}) + int64_t{aesthetic}; }
  bool operator==(const MicroSwitches&) const = default;
};
void describe(config::Visitor& v, MicroSwitches& c);

struct ConditioningSettings {
  MicroSwitches micro = {};
  NullValue null_text = NullValue::zeros;            // zeros | empty_prompt
  NullValue null_numbers = NullValue::zeros;         // zeros | int_zero
  double aesthetic = 6.0, negative_aesthetic = 2.5;  // of samples without a score, and at inference; of guidance's other branch
};
// Flat keys micro, null_text, null_numbers, aesthetic, negative_aesthetic; `with_text` off: nothing to choose for
// null_text.
void describe_settings(config::Visitor& v, ConditioningSettings& c, bool with_text);

// Numbers [B, n] float32 in the order of the switches, and what is left of each: mask [B, n] float32, undefined where
// nothing was dropped to zeros.
struct MicroNumbers {
  Tensor numbers = {}, mask = {};
};
MicroNumbers micro_numbers(const ConditioningSettings& settings, const ConditionInput& input,
                           const ConditionDrop& drop);

// [B, 6] with equal rows; an empty list stands for the image size (original, target) and for (0, 0) (crop).
Tensor micro_rows(int64_t batch, int64_t height, int64_t width, std::span<const int64_t> original = {},
                  std::span<const int64_t> crop = {}, std::span<const int64_t> target = {});

// What the unconditional branch of guidance lacks: the text (the numbers stay, as SDXL samples), or everything.
enum class NullScope { text, all };

class Conditioner {
 public:
  virtual ~Conditioner() = default;
  // Gradients reach what trainable() returns and nothing else. DataError / ConfigError: a condition is missing or
  // unknown.
  models::UNetConditions operator()(const ConditionInput& input, const ConditionDrop& drop = {}) const;
  // The null text (and numbers) for as many samples as `like` has, with the numbers of `like` when only the text is
  // dropped; where `like` has no aesthetic scores, with negative_aesthetic.
  models::UNetConditions null(const ConditionInput& like, NullScope scope = NullScope::text) const;

  virtual std::string_view kind() const = 0;
  virtual std::string description() const = 0;         // for logs
  virtual int64_t context_width() const = 0;           // D of [B, L, D]
  virtual int64_t pooled_width() const = 0;            // 0: none
  virtual int64_t context_length() const = 0;          // L
  virtual nn::Module* trainable() { return nullptr; }  // learned together with the network; null: frozen
  virtual void to(at::Device device) = 0;
  // The folder frozen encoders were loaded from, for the identity of cached texts; empty: none are frozen.
  virtual std::filesystem::path source() const { return {}; }
  virtual const std::vector<std::string>& class_names() const;  // empty for texts
  const ConditioningSettings& settings() const { return settings_; }
  void tell(const MicroSwitches& micro) {
    settings_.micro = micro;
  }  // when a network is given inputs for further numbers
  int64_t numbers() const { return settings_.micro.count(); }

  // conditioner/conditioner_config.json and the component folders beside it.
  void save(const std::filesystem::path& model_folder) const;
  // Lines of model_index.json: {"text_encoder": ["transformers", "CLIPTextModel"], ...}.
  virtual Json index_entries() const = 0;
  // The class name diffusers knows for this conditioning ("StableDiffusionXLPipeline"), or "": only ours.
  virtual std::string diffusers_class() const { return {}; }
  // A diffusers folder (model_index.json without `conditioner`) or ours.
  static std::unique_ptr<Conditioner> load(const std::filesystem::path& model_folder, at::Device device);

 protected:
  explicit Conditioner(const ConditioningSettings& settings) : settings_(settings) {}
  struct Encoded {
    Tensor context = {}, pooled = {};  // [B, L, D], [B, P]
  };
  virtual Encoded encode(const ConditionInput& input) const = 0;  // of captions or labels
  virtual Encoded encode_empty() const = 0;                       // of "": one row
  virtual void save_components(const std::filesystem::path& model_folder) const = 0;
  virtual Json own_config() const;  // further keys of conditioner_config.json
  ConditioningSettings settings_;

 private:
  Encoded encode_dropped(const ConditionInput& input, const ConditionDrop& drop) const;
};

// ConfigError unless the network takes what the conditioner gives: width of the context, of the pooled text and
// numbers.
void check_conditioning(const models::UNet2DConfig& unet, const Conditioner& conditioner, std::string_view where);
// cross_attention_dim, addition_embed_type and projection_class_embeddings_input_dim of a network for this conditioner.
void fit_conditioning(models::UNet2DConfig& unet, const Conditioner& conditioner);

// A conditioner from the config of a training run.
struct ConditionerStart {
  std::vector<std::string> class_names = {};                                   // of the data set
  std::function<text::BpeTokenizer(int64_t vocab_size)> train_tokenizer = {};  // on the captions of the data set
  uint64_t seed = 0;
};
struct ConditionerConfig {
  virtual ~ConditionerConfig() = default;
  virtual std::string_view kind() const = 0;
  virtual void describe(config::Visitor& v) = 0;
  virtual std::unique_ptr<Conditioner> build(const ConditionerStart& start) const = 0;  // on the CPU, with weights
};
struct ConditionerKind {
  std::string_view name;
  std::unique_ptr<ConditionerConfig> (*make)();
  std::unique_ptr<Conditioner> (*load)(const std::filesystem::path& model_folder, const Json& config,
                                       const ConditioningSettings&);
};
std::span<const ConditionerKind>
conditioner_kinds();  // v.field("conditioner", c.conditioner, "...", conditioner_kinds())

}  // namespace fewstep::pipelines
