// The learning rate's factor as a pure function of the step, so that a resumed run needs no scheduler state.
#pragma once
#include <cstdint>

namespace limbeck::optim {

enum class ScheduleKind { kConstant, kLinear, kCosine, kWsd };

struct Schedule {
  ScheduleKind kind = ScheduleKind::kConstant;
  int64_t total_steps = 1;
  int64_t warmup_steps = 0;   // rising evenly; step 0 has 1/warmup_steps, so that no update is without effect
  double final_factor = 0.0;  // reached at total_steps, kept after it
  double wsd_decay = 0.1;     // share of total_steps in which warmup-stable-decay falls, linearly, at the end

  // `step` counts updates from 0.
  double factor(int64_t step) const;
};

}  // namespace limbeck::optim
