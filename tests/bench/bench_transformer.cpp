// Our side of tools/bench_vs_pytorch.sh: one llama-form transformer, driven line by line over standard input so that the
// other side (tools/bench_pytorch.py) can be run in turns. Every command answers with one JSON line.
//   load DIR        config.json and model.safetensors
//   loss            mean cross-entropy on the fixed batch, for the check before any timing
//   train N         N steps: forward, backward, clip, AdamW -> wall and CPU seconds of each
//   decode P N      greedy: prompt of P tokens, N new ones -> seconds and the tokens
//   profile N       where N training steps go
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <chrono>
#include <ctime>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "src/base/error.h"
#include "src/models/llama.h"
#include "src/models/model.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/optim.h"

namespace fewstep {
namespace {

struct Seconds {
  double wall = 0, cpu = 0;
};

class Stopwatch {
 public:
  Seconds read() const { return {now(CLOCK_MONOTONIC) - wall_, now(CLOCK_PROCESS_CPUTIME_ID) - cpu_}; }

 private:
  static double now(clockid_t id) {
    timespec t{};
    clock_gettime(id, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }
  double wall_ = now(CLOCK_MONOTONIC), cpu_ = now(CLOCK_PROCESS_CPUTIME_ID);
};

// The same ids on both sides: no random numbers to agree on.
Tensor fixed_ids(int64_t batch, int64_t length, int64_t vocab) {
  return (at::arange(batch * length, at::kLong) * 7919 % 8191 % vocab).view({batch, length});
}

class Bench {
 public:
  Json load(const std::string& folder, int64_t batch, int64_t length) {
    module_ = models::load_model(folder);
    model_ = dynamic_cast<models::LlamaForCausalLM*>(module_.get());
    ids_ = fixed_ids(batch, length, model_->config().vocab_size);
    optimizer_.reset();
    return {{"parameters", model_->parameter_count()}, {"threads", at::get_num_threads()}};
  }

  Json loss() {
    const NoGrad no_grad;
    return {{"loss", forward().item<double>()}};
  }

  Json train(int64_t steps) {
    if (!optimizer_) {
      model_->train();
      model_->release_inference();
      OptimizerConfig c;
      c.lr = 1e-4, c.weight_decay = 0.1, c.clip_norm = 1.0;
      optimizer_ = std::make_unique<AdamW>(model_->parameters(), c);
    }
    Json wall = Json::array(), cpu = Json::array();
    double last = 0;
    for (int64_t i = 0; i < steps; ++i) {
      const Stopwatch watch;
      optimizer_->zero_grad();
      const Tensor loss = forward();
      loss.backward();
      optimizer_->step(1e-4, optimizer_->grad_norm());
      last = loss.item<double>();
      const Seconds s = watch.read();
      wall.push_back(s.wall), cpu.push_back(s.cpu);
    }
    return {{"wall", wall}, {"cpu", cpu}, {"loss", last}};
  }

  Json decode(int64_t prompt, int64_t count) {
    const NoGrad no_grad;
    if (!packed_) model_->prepare_inference(), packed_ = true;
    Tensor next = fixed_ids(1, prompt, model_->config().vocab_size);
    models::KvCache cache = model_->make_cache(1, prompt + count);
    Json tokens = Json::array();
    const Stopwatch watch;
    for (int64_t i = 0; i < count; ++i) {
      const Tensor hidden = model_->hidden(model_->embed(next), {.positions = {}, .mask = {}, .cache = &cache});
      next = model_->logits(hidden.narrow(1, hidden.size(1) - 1, 1)).argmax(-1);
      tokens.push_back(next.item<int64_t>());
    }
    const Seconds s = watch.read();
    return {{"wall", s.wall}, {"cpu", s.cpu}, {"tokens", tokens}};
  }

  // Sections of a training step, each closed by reading the clock: operators run in order on the CPU.
  Json profile(int64_t steps) {
    train(1);
    std::vector<std::pair<std::string, Seconds>> sections = {{"zero_grad", {}}, {"embed + blocks", {}}, {"output layer + loss", {}},
                                                             {"backward", {}}, {"grad norm", {}}, {"clip + AdamW", {}}};
    const int64_t L = ids_.size(1);
    for (int64_t i = 0; i < steps; ++i) {
      size_t at = 0;
      Stopwatch watch;
      const auto close = [&] {
        const Seconds s = watch.read();
        sections[at].second.wall += s.wall, sections[at].second.cpu += s.cpu;
        ++at, watch = Stopwatch();
      };
      optimizer_->zero_grad(), close();
      const Tensor hidden = model_->hidden(model_->embed(ids_)); close();
      const Tensor loss = model_->token_loss(hidden.narrow(1, 0, L - 1), ids_.narrow(1, 1, L - 1)).mean(); close();
      loss.backward(), close();
      const Tensor norm = optimizer_->grad_norm(); close();
      optimizer_->step(1e-4, norm), close();
    }
    Json out = Json::object();
    for (const auto& [name, s] : sections)
      out[name] = {{"wall", s.wall / static_cast<double>(steps)}, {"cpu", s.cpu / static_cast<double>(steps)}};
    return out;
  }

 private:
  Tensor forward() const {
    const int64_t L = ids_.size(1);
    const Tensor hidden = model_->hidden(model_->embed(ids_));
    return model_->token_loss(hidden.narrow(1, 0, L - 1), ids_.narrow(1, 1, L - 1)).mean();
  }
  std::unique_ptr<nn::Module> module_;
  models::LlamaForCausalLM* model_ = nullptr;
  std::unique_ptr<AdamW> optimizer_;
  Tensor ids_;
  bool packed_ = false;
};

Json answer(Bench& bench, const std::string& line) {
  std::istringstream in(line);
  std::string command, folder;
  int64_t a = 1, b = 1;
  in >> command;
  if (command == "load") {
    in >> folder >> a >> b;
    return bench.load(folder, a, b);
  }
  in >> a >> b;
  if (command == "loss") return bench.loss();
  if (command == "train") return bench.train(a);
  if (command == "decode") return bench.decode(a, b);
  if (command == "profile") return bench.profile(a);
  fail<ConfigError>("unknown command '{}' (load, loss, train, decode, profile)", command);
}

}  // namespace
}  // namespace fewstep

int main() {
  fewstep::Bench bench;
  try {
    for (std::string line; std::getline(std::cin, line);) std::cout << fewstep::answer(bench, line).dump() << std::endl;
  } catch (const fewstep::Error& e) {
    fmt::print(stderr, "bench_transformer: {}\n", e.what());
    return e.exit_code();
  }
  return 0;
}
