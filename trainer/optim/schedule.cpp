#include "trainer/optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace limbeck::optim {

namespace {

// How far `step` is on the way from `begin` to `end`, in [0, 1].
double share(int64_t step, int64_t begin, int64_t end) {
  if (end <= begin) return 1.0;
  return std::clamp(static_cast<double>(step - begin) / static_cast<double>(end - begin), 0.0, 1.0);
}

}  // namespace

double Schedule::factor(int64_t step) const {
  if (step < warmup_steps) return static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  switch (kind) {
    case ScheduleKind::kConstant:
      return 1.0;
    case ScheduleKind::kLinear:
      return 1.0 - (1.0 - final_factor) * share(step, warmup_steps, total_steps);
    case ScheduleKind::kCosine:
      return final_factor +
             (1.0 - final_factor) * 0.5 * (1.0 + std::cos(std::numbers::pi * share(step, warmup_steps, total_steps)));
    case ScheduleKind::kWsd:
      break;
  }
  const auto falling = static_cast<int64_t>(std::llround(wsd_decay * static_cast<double>(total_steps)));
  const int64_t begin = std::max(warmup_steps, total_steps - falling);
  return step < begin ? 1.0 : 1.0 - (1.0 - final_factor) * share(step, begin, total_steps);
}

}  // namespace limbeck::optim
