#include "trainer/loop/checkpoint_plan.h"

#include <algorithm>
#include <cmath>

namespace limbeck::loop {
namespace {

constexpr double kFirstInterval = 60;  // seconds, until the first save has shown what one costs

}  // namespace

CheckpointPlan::CheckpointPlan(const CheckpointOptions& options)
    : enabled_(options.keep > 0),
      every_(options.every),
      mtbf_s_(options.mtbf_s),
      overhead_(options.overhead),
      interval_s_(kFirstInterval) {}

bool CheckpointPlan::due(int64_t step, double now_s) const {
  if (!enabled_) return false;
  return every_ > 0 ? step % every_ == 0 : now_s - last_s_ >= interval_s_;
}

void CheckpointPlan::cost(double standing_s, double whole_s) {
  // A save that runs beside training still takes memory bandwidth and disk from it: its whole length counts as cost,
  // and the next one does not begin before as much time has passed again.
  const double young_daly = std::sqrt(2 * whole_s * mtbf_s_);
  interval_s_ = std::max({young_daly, standing_s / overhead_, 2 * whole_s});
}

}  // namespace limbeck::loop
