// When to save: every so many updates, or as often as the measured cost of a checkpoint is worth (Young and Daly), and
// never for more than a given share of the time.
#pragma once
#include <cstdint>

#include "trainer/loop/run_options.h"

namespace limbeck::loop {

class CheckpointPlan {
 public:
  explicit CheckpointPlan(const CheckpointOptions& options);

  bool enabled() const { return enabled_; }
  // Whether the boundary after `step` updates is one to save at, `now_s` seconds into the process.
  bool due(int64_t step, double now_s) const;
  void saved(double now_s) { last_s_ = now_s; }
  // Of a finished save: how long training stood still for it, and how long it took in all.
  void cost(double standing_s, double whole_s);
  double interval_s() const { return interval_s_; }  // with checkpoint.every = 0

 private:
  bool enabled_;
  int64_t every_;
  double mtbf_s_, overhead_;
  double last_s_ = 0, interval_s_;
};

}  // namespace limbeck::loop
