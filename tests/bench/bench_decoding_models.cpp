#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/pipelines/autoregressive_pipeline.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "tests/bench/bench_decoding.h"

namespace fewstep::bench {
namespace {

double read_clock(clockid_t id) {
  timespec t{};
  clock_gettime(id, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

struct RandomSizes {
  int64_t hidden, layers, heads, intermediate, grid, codebook;
  // A random network's laws are nearly flat and accept nearly everything, sharp ones hang on every rounding of the context and
  // accept nothing: the last layer's weights are scaled so that sjd with coupling commits about as many tokens a pass as on
  // trained models (S 3 to 5 at window 32 and guidance 2).
  double logit_scale;
};
constexpr RandomSizes kTiny = {128, 5, 4, 352, 16, 256, 6.0};
constexpr RandomSizes kTiny1024 = {128, 5, 4, 352, 32, 256, 6.0};
constexpr RandomSizes kFiftyMillion = {512, 12, 8, 1536, 32, 8192, 3.0};

void make_random(Model& m, const RandomSizes& s, double logit_scale) {
  m.layout.text_vocab = 255, m.layout.codebook = s.codebook, m.layout.grid_height = m.layout.grid_width = s.grid;
  models::LlamaConfig c;
  c.vocab_size = m.layout.vocab_size(), c.hidden_size = s.hidden, c.intermediate_size = s.intermediate;
  c.num_hidden_layers = s.layers, c.num_attention_heads = s.heads, c.max_position_embeddings = m.layout.sequence_length();
  m.network = std::make_unique<models::LlamaForCausalLM>(c);
  m.network->initialise(1);
  m.network->requires_grad(false);
  const NoGrad no_grad;
  for (NamedTensor& p : m.network->parameters()) {
    // Embeddings as large as the residual stream gets, as in trained networks; else the first tokens' noise decides nothing.
    if (p.name == "model.embed_tokens.weight") p.tensor.mul_(0.3 / c.initializer_range);
    if (p.name == "lm_head.weight") p.tensor.mul_(logit_scale == kDefaultLogitScale ? s.logit_scale : logit_scale);
  }
  m.network->prepare_inference();
  m.own_image = std::make_unique<decoding::LlamaImageModel>(*m.network, m.layout);
  m.own_noise = std::make_unique<models::EmbeddingNoise>(models::EmbeddingNoiseConfig{}, m.network->embedding_weight(),
                                                         m.layout.image_id(0));
  m.image = m.own_image.get(), m.noise = m.own_noise.get(), m.random = true;
  m.parameters = m.network->parameter_count(), m.layers = s.layers, m.hidden = s.hidden;
}

void load_folder(Model& m) {
  m.pipeline = pipelines::load(m.name, at::kCPU);
  const auto* ar = dynamic_cast<const pipelines::AutoregressivePipeline*>(m.pipeline.get());
  if (!ar) fail<ConfigError>("{}: not an autoregressive image model", m.name);
  m.layout = ar->layout(), m.image = &ar->model(), m.noise = &ar->noise();
  m.parameters = ar->transformer().parameter_count();
  m.layers = ar->transformer().config().num_hidden_layers, m.hidden = ar->transformer().config().hidden_size;
}

}  // namespace

Seconds Seconds::now() { return {read_clock(CLOCK_MONOTONIC), read_clock(CLOCK_PROCESS_CPUTIME_ID)}; }

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v.empty() ? 0 : v.size() % 2 == 1 ? v[v.size() / 2] : 0.5 * (v[v.size() / 2 - 1] + v[v.size() / 2]);
}

Seconds median(const std::vector<Seconds>& values) {
  std::vector<double> wall, cpu;
  for (const Seconds& s : values) wall.push_back(s.wall), cpu.push_back(s.cpu);
  return {median(wall), median(cpu)};
}

Model make_model(const std::string& name, double logit_scale) {
  Model m;
  m.name = name;
  if (name == "tiny")
    make_random(m, kTiny, logit_scale);
  else if (name == "tiny1024")
    make_random(m, kTiny1024, logit_scale);
  else if (name == "50m")
    make_random(m, kFiftyMillion, logit_scale);
  else
    load_folder(m);
  return m;
}

Tensor Model::prompts(int64_t batch) const {
  static const std::vector<std::string> kCaptions = {"a dark long dress", "a white sneaker", "a small black bag",
                                                     "a light pullover"};
  std::vector<std::string> captions;
  for (int64_t b = 0; b < batch; ++b) captions.push_back(kCaptions[static_cast<size_t>(b) % kCaptions.size()]);
  if (pipeline) return dynamic_cast<const pipelines::AutoregressivePipeline&>(*pipeline).encode(captions);
  std::vector<std::vector<int64_t>> ids;  // any text will do: the letters
  for (const std::string& caption : captions) ids.emplace_back(caption.begin(), caption.end());
  return layout.prompts(ids);
}

Seconds TimedModel::inside() const {
  Seconds sum;
  for (const PassTime& p : passes_) sum += p.inside;
  return sum;
}

Tensor TimedModel::prompts(const Tensor& of_model) const { return at::constant_pad_nd(of_model, {0, skip_}); }
Tensor TimedModel::unconditional_prompt() const { return at::constant_pad_nd(of_.unconditional_prompt(), {0, skip_}); }
Tensor TimedModel::forced() const { return of_.forced().narrow(0, skip_, length()); }

models::KvCache TimedModel::make_cache(int64_t batch, int64_t capacity) const {
  models::KvCache cache = of_.make_cache(batch, capacity);
  if (skip_ > 0)
    for (auto* side : {&cache.keys, &cache.values})
      for (Tensor& t : *side) t.zero_();
  return cache;
}

Tensor TimedModel::hidden(const Tensor& embeds, const models::ForwardOptions& options) const {
  const int64_t L = embeds.size(1);
  const bool prompt = passes_.empty();
  if (prompt && L < unconditional_prompt().size(0)) return of_.hidden(embeds, options);  // timestep tokens
  if (static_cast<int64_t>(passes_.size()) > most_) throw Enough();
  PassTime pass;
  if (options.slots.defined()) pass.position = options.positions.select(1, 0).to(at::kDouble).mean().item<double>();
  pass.begin = Seconds::now();
  Tensor out;
  if (prompt && skip_ > 0) {
    out = at::zeros_like(embeds);
    if (!options.slots.defined()) options.cache->length += L;
  } else {
    out = of_.hidden(embeds, options);
  }
  pass.inside = Seconds::now() - pass.begin;
  passes_.push_back(pass);
  return out;
}

Tensor TimedModel::code_logits(const Tensor& hidden) const {
  const Seconds begin = Seconds::now();
  const Tensor out = of_.code_logits(hidden);
  passes_.back().inside += Seconds::now() - begin;
  return out;
}

Json to_json(const Seconds& s) { return {{"wall", s.wall}, {"cpu", s.cpu}}; }

Json machine() {
  double load = 0;
  getloadavg(&load, 1);
  return {{"threads", at::get_num_threads()}, {"load", load}};
}

void print_machine() {
  const Json m = machine();
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value ? value : "not set");
  };
  fmt::print("{} threads, load {:.2f}, OMP_WAIT_POLICY {}, GOMP_SPINCOUNT {}\n", m.at("threads").get<int>(),
             m.at("load").get<double>(), variable("OMP_WAIT_POLICY"), variable("GOMP_SPINCOUNT"));
}

}  // namespace fewstep::bench
