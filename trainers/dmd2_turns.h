// Whose turn it is in an iteration of DMD2. "5" is published with two meanings:
//   every_iteration  DMD2, FastVideo: the fake score is trained in every iteration, the student in every fifth: 5 updates for one
//   between          FastGen, Model-Optimizer: the fake score is left alone in the student's iterations: 4 updates for one
// In an iteration with both turns the student's comes first, and the fake score learns on the very samples it made.
#pragma once
#include <cstdint>

#include "src/config/visitor.h"

namespace fewstep {

enum class CriticRule { every_iteration, between };

struct TurnConfig {
  int64_t updates = 5;  // the published number: the student has a turn in every updates-th iteration, beginning with the first
  CriticRule rule = CriticRule::every_iteration;
  int64_t lead = 0;     // iterations before the student's first turn, all the fake score's: it starts as the teacher, and a student
                        // that was warm-started or trained before is another distribution
};
void describe_turns(config::Visitor& v, TurnConfig& c);  // flat keys updates, rule, lead

struct Turns {
  bool student = false, critic = false;
  bool operator==(const Turns&) const = default;
};
// A function of the iteration alone: the phase of the cycle needs no state, and is the same on all ranks and after a resume.
Turns turns_at(const TurnConfig& c, int64_t iteration);
// The cycle an iteration belongs to, negative before the student's first turn, and its place in it, [0, updates).
struct CyclePlace {
  int64_t cycle = 0, place = 0;
};
CyclePlace cycle_place(const TurnConfig& c, int64_t iteration);
int64_t critic_turns(const TurnConfig& c);  // in a cycle of `updates` iterations, beside one of the student

}  // namespace fewstep
