#include "trainers/dmd2_turns.h"

#include "src/base/error.h"

namespace fewstep {

void describe_turns(config::Visitor& v, TurnConfig& c) {
  static constexpr config::Choice kRules[] = {{"every_iteration", static_cast<int>(CriticRule::every_iteration)},
                                              {"between", static_cast<int>(CriticRule::between)}};
  v.field("updates", c.updates, "the student has its turn in every such iteration, the first included", config::kAtLeastOne);
  v.field("rule", c.rule, "the fake score's turns: every_iteration (DMD2: 5 updates of it for one of the student where updates is 5), "
          "or between: not in the student's iterations (FastGen: 4)", kRules);
  v.field("lead", c.lead, "first iterations in which only the fake score is trained", config::kNonNegative);
  v.check(c.rule == CriticRule::every_iteration || c.updates >= 2, "updates",
          "must be at least 2 with rule: between, or the fake score would never have a turn");
}

Turns turns_at(const TurnConfig& c, int64_t iteration) {
  FEW_CHECK(iteration >= 0 && c.updates >= 1, "iteration {} of a cycle of {}", iteration, c.updates);
  if (iteration < c.lead) return {.student = false, .critic = true};
  const bool student = cycle_place(c, iteration).place == 0;
  return {.student = student, .critic = c.rule == CriticRule::every_iteration || !student};
}

CyclePlace cycle_place(const TurnConfig& c, int64_t iteration) {
  const int64_t since = iteration - c.lead;
  const int64_t cycle = since >= 0 ? since / c.updates : -((-since + c.updates - 1) / c.updates);
  return {.cycle = cycle, .place = since - cycle * c.updates};
}

int64_t critic_turns(const TurnConfig& c) { return c.rule == CriticRule::every_iteration ? c.updates : c.updates - 1; }

}  // namespace fewstep
