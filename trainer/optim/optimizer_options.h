// What the recipe's optim.* keys ask of the optimizer, read once. UsageError where a value cannot work.
#pragma once
#include <cstdint>
#include <map>
#include <string>

#include "kernels/adamw/adamw.h"
#include "trainer/optim/loss_scale.h"
#include "trainer/optim/schedule.h"
#include "trainer/recipe/settings.h"

namespace limbeck::optim {

// train.safe_mode bounds the rates at 1e-4 and clips at 0.5.
struct OptimizerOptions {
  std::map<std::string, double> base_rate;  // by group: student, projector, router
  Schedule schedule;
  kernels::AdamWOptions adamw;
  double weight_decay = 0, clip = 0, ema_decay = 0;  // 0: none
  LossScale::Options loss_scale;                     // where a parameter is float16
  int64_t max_skipped = 10;                          // updates in a row
};

// `total_steps` fixes the schedule.
OptimizerOptions read_optimizer_options(const recipe::Settings& settings, int64_t total_steps);

}  // namespace limbeck::optim
