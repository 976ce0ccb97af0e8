// The optimizer's parts as the recipe's optim.* keys describe them. UsageError where a value cannot work.
#pragma once
#include <cstdint>
#include <string>

#include "trainer/optim/loss_scale.h"
#include "trainer/optim/schedule.h"
#include "trainer/recipe/settings.h"

namespace limbeck::optim {

Schedule read_schedule(const recipe::Settings& settings, int64_t total_steps);
// Off unless `needed`: a trained parameter is float16.
LossScale read_loss_scale(const recipe::Settings& settings, bool needed);
// optim.learning_rate, .router_learning_rate and .clip within what train.safe_mode allows: rates of 1e-4, clipping at
// 0.5.
double read_rate(const recipe::Settings& settings, const std::string& name, double factor = 1);
double read_clip(const recipe::Settings& settings);
// A share in [0, 1). A beta of 1 would never move, and its bias correction would divide by zero.
double read_share(const recipe::Settings& settings, const std::string& name);

}  // namespace limbeck::optim
