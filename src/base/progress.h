// Progress of a long job: a bar with ETA on a terminal, a plain line every few seconds otherwise. Rank 0 only.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace fewstep {

class Progress {
 public:
  // `label` stands in front: "vq_tokenizer". `total` units, of which `done` were finished by an earlier run.
  Progress(std::string label, int64_t total, int64_t done = 0);
  ~Progress();  // leaves the terminal on a fresh line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  // `note` is shown behind the ETA: "loss 1.71  412 images/s".
  void update(int64_t done, std::string_view note = {});
  void finish(std::string_view note = {});
  // Ends the bar's line so that another line may be written; the bar comes back with the next update.
  static void interrupt_line();

 private:
  void draw(std::string_view note, bool last);
  std::string label_;
  int64_t total_, first_, done_;
  std::chrono::steady_clock::time_point start_, drawn_;
  bool terminal_, finished_ = false;
};

}  // namespace fewstep
