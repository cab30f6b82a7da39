#include "tools/distilled_model.h"

#include <fmt/ranges.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/diffusion/scheduler_config.h"
#include "src/diffusion/student_schedule.h"
#include "src/models/lora_files.h"

namespace fewstep {
namespace fs = std::filesystem;
namespace {

constexpr double kSameLevel = 1e-4;

std::vector<double> numbers_of(const Json& j, const char* key, const std::string& where) {
  const auto it = j.find(key);
  if (it == j.end() || !it->is_array() || it->empty()) fail<DataError>("{}: '{}' is not a list of numbers", where, key);
  std::vector<double> out;
  for (const Json& x : *it) {
    if (!x.is_number()) fail<DataError>("{}: '{}' is not a list of numbers", where, key);
    out.push_back(x.get<double>());
  }
  return out;
}

std::string text_of(const Json& j, const char* key) {
  const auto it = j.find(key);
  return it == j.end() || it->is_null() ? "" : it->is_string() ? it->get<std::string>() : it->dump();
}

// The rungs by the schedule's own levels, then the scheduler by those.
void check_levels(const DistilledModel& m, const fs::path& folder, const std::string& where) {
  const diffusion::SchedulerConfig scheduler = diffusion::load_scheduler_config(folder);
  const std::string place = (folder / "scheduler_config.json").string();
  if (const diffusion::ScheduleConfig& s = scheduler.schedule; s.dynamic_shift && s.base_shift != s.max_shift)
    fail<ConfigError>("{}: its shift depends on the size of the image (base_shift {}, max_shift {}), and the student was trained at the same sigmas for "
                      "every size ({}): put the student's own scheduler back",
                      place, s.base_shift, s.max_shift, where);
  const diffusion::StudentScheduleConfig config{
      .steps = m.steps(), .timesteps = m.timesteps, .shift = 1.0,
      .student = m.sampler == "lcm" ? diffusion::StudentKind::stochastic : diffusion::StudentKind::ode};
  const diffusion::StudentSchedule student(config, diffusion::Schedule(scheduler.schedule));
  for (int64_t k = 0; k < m.steps(); ++k)
    if (const double ours = student.sigma(k), trained = m.sigmas[static_cast<size_t>(k)]; !(std::abs(ours - trained) <= kSameLevel))
      fail<ConfigError>("{}: at timestep {:g} its schedule has sigma {:.5f}, and the student was trained there at {:.5f} ({}): put the "
                        "student's own scheduler back, or train it again",
                        place, m.timesteps[static_cast<size_t>(k)], ours, trained, where);
  student.check_scheduler(scheduler, place);
}

}  // namespace

std::map<std::string, std::string> DistilledModel::metadata() const {
  return {{"distill.method", method},
          {"distill.steps", std::to_string(steps())},
          {"distill.timesteps", Json(timesteps).dump()},
          {"distill.sigmas", Json(sigmas).dump()},
          {"distill.sampler", sampler},
          {"distill.cfg", Json(guidance).dump()}};
}

std::optional<DistilledModel> read_distilled_model(const fs::path& model) {
  const fs::path path = model / models::kDistillationFile;
  if (!fs::exists(path)) return std::nullopt;
  const std::string where = path.string();
  const Json j = read_json(path);
  if (!j.is_object()) fail<DataError>("{}: expected a JSON object, found {}", where, j.type_name());
  DistilledModel m{.method = text_of(j, "method"), .timesteps = numbers_of(j, "timesteps", where), .sigmas = numbers_of(j, "sigmas", where),
                   .sampler = text_of(j, "sampler"), .guidance = 1, .teacher = text_of(j, "teacher"), .teacher_sha256 = text_of(j, "teacher_sha256")};
  if (const auto cfg = j.find("cfg_scale"); cfg != j.end() && cfg->is_number()) m.guidance = cfg->get<double>();
  // The clean end may stand behind the rungs.
  if (m.sigmas.size() == m.timesteps.size() + 1 && m.sigmas.back() == 0.0) m.sigmas.pop_back();
  if (m.sigmas.size() != m.timesteps.size())
    fail<DataError>("{}: {} timesteps and {} sigmas: one a rung is expected", where, m.timesteps.size(), m.sigmas.size());
  if (m.method.empty() || m.sampler.empty()) fail<DataError>("{}: 'method' and 'sampler' are expected", where);
  if (const auto steps = j.find("steps"); steps != j.end() && *steps != Json(m.steps()))
    fail<DataError>("{}: steps is {} beside {} timesteps", where, steps->dump(), m.steps());
  if (const auto training = j.find("training"); training != j.end() && training->is_object())
    for (const auto& [key, value] : training->items()) m.training[key] = text_of(*training, key.c_str());
  check_levels(m, model / "scheduler", where);
  return m;
}

}  // namespace fewstep
