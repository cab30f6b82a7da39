// What the sections of bench_decoding share: models, clocks, and a wrapper that times passes of unchanged decoders.
#pragma once
#include <ctime>
#include <memory>
#include <string>
#include <vector>

#include "src/base/json.h"
#include "src/decoding/decoders.h"
#include "src/pipelines/pipeline.h"

namespace fewstep::bench {

struct Seconds {
  double wall = 0, cpu = 0;
  static Seconds now();
  Seconds& operator+=(const Seconds& o) { return wall += o.wall, cpu += o.cpu, *this; }
  Seconds operator-(const Seconds& o) const { return {wall - o.wall, cpu - o.cpu}; }
  Seconds operator/(double n) const { return {wall / n, cpu / n}; }
};

double median(std::vector<double> values);
Seconds median(const std::vector<Seconds>& values);

// `tiny`, `tiny1024` and `50m` are random; anything else is a run or model folder.
struct Model {
  std::string name;
  models::SequenceLayout layout;
  const decoding::ImageModel* image = nullptr;
  const models::EmbeddingNoise* noise = nullptr;
  int64_t parameters = 0, layers = 0, hidden = 0;
  bool random = false;
  Tensor prompts(int64_t batch) const;  // int64 [B, P]

  std::unique_ptr<models::LlamaForCausalLM> network;
  std::unique_ptr<decoding::LlamaImageModel> own_image;
  std::unique_ptr<models::EmbeddingNoise> own_noise;
  std::unique_ptr<pipelines::Pipeline> pipeline;
};
inline constexpr double kDefaultLogitScale = 0;  // 0: the named model's own, see make_random()
Model make_model(const std::string& name, double logit_scale = kDefaultLogitScale);

// One pass as seen from the transformer: when it was entered, what it used until the next entry, where its first row stood.
struct PassTime {
  Seconds begin, inside;
  double position = 0;
};

// Delegates to a model and notes the time of every pass. With `skip` it stands for the same model after `skip` image tokens:
// its prompts are that much longer, its images that much shorter, and the pass over the prompt is not computed (the keys are
// zeros, which cost what any others cost). Decoders run in it unchanged; after `most` passes it throws Enough.
class TimedModel : public decoding::ImageModel {
 public:
  struct Enough {};
  explicit TimedModel(const Model& model, int64_t skip = 0, int64_t most = 1 << 30)
      : of_(*model.image), skip_(skip), most_(most) {}
  std::vector<PassTime> passes() const { return passes_; }
  Seconds inside() const;
  Tensor prompts(const Tensor& of_model) const;  // [B, P] -> [B, P + skip]

  int64_t codes() const override { return of_.codes(); }
  int64_t free_codes() const override { return of_.free_codes(); }
  int64_t length() const override { return of_.length() - skip_; }
  int64_t row_length() const override { return of_.row_length(); }
  Tensor forced() const override;
  Tensor table() const override { return of_.table(); }
  Tensor unconditional_prompt() const override;
  Tensor embed_prompts(const Tensor& ids) const override { return of_.embed_prompts(ids); }
  Tensor hidden(const Tensor& embeds, const models::ForwardOptions& options) const override;
  Tensor code_logits(const Tensor& hidden) const override;
  Tensor rotate(const Tensor& keys, const Tensor& positions) const override { return of_.rotate(keys, positions); }
  models::KvCache make_cache(int64_t batch, int64_t capacity) const override;

 private:
  const decoding::ImageModel& of_;
  int64_t skip_, most_;
  mutable std::vector<PassTime> passes_;
};

struct Side {
  std::string name;
  decoding::DecoderOptions options;
};
struct DecoderArguments {
  int64_t window = 32, steps = 4, top_k = 0;
  double guidance = 2;
};
// ar, sjd and gated sjd2 with either coupling, at one window.
std::vector<Side> sides_of(const DecoderArguments& a, int64_t length);

// A decoder on a model: seconds of a pass, of an image, tokens a pass.
struct Timing {
  Seconds pass, inside;    // of one pass; of it in the transformer (blocks and code logits)
  double compression = 1;  // tokens an image gains a pass
  Seconds image;           // of one image
};
Timing time_whole(const Model& model, const Side& side, int64_t batch, int64_t images, bool deterministic = false);
struct SampledArguments {
  int64_t places = 3, warm = 6, passes = 12;  // cache lengths spread over the image, passes left out and counted at each
};
Timing time_sampled(const Model& model, const Side& side, int64_t batch, const SampledArguments& s);

struct RatiosArguments {
  std::string model = "tiny";
  std::vector<int64_t> batch = {1, 8};
  int64_t images = 8, rounds = 3;
  double assume_s = 0, logit_scale = kDefaultLogitScale;
  bool whole = false;
  DecoderArguments decoder;
  SampledArguments sampled;
};
Json ratios(const RatiosArguments& a);
Json deterministic(const RatiosArguments& a);

struct RidgeArguments {
  std::string model = "tiny";
  int64_t cached = -1, rounds = 5, most = 256;  // cached: image tokens in the cache; -1: half of the image
  double assume_s = 3.2;
  std::vector<int64_t> windows = {16, 32, 64, 96, 128};
};
Json ridge(const RidgeArguments& a);

struct MemoryArguments {
  std::string model = "tiny", child;
  int64_t batch = 1, rounds = 3;
  DecoderArguments decoder;
};
Json memory(const MemoryArguments& a);
Json memory_of_child(const MemoryArguments& a);  // runs side `child` in this process

struct PassesArguments {
  std::string model = "tiny";
  int64_t images = 16;
  std::vector<int64_t> windows = {8, 64, 96};
  DecoderArguments decoder;
};
Json passes(const PassesArguments& a);

Json machine();  // threads, load
Json to_json(const Seconds& s);
void print_machine();

}  // namespace fewstep::bench
