#include "trainer/optim/optimizer_options.h"

#include <fmt/format.h>

#include <algorithm>

#include "modules/errors.h"

namespace limbeck::optim {
namespace {

constexpr double kSafeRate = 1e-4, kSafeClip = 0.5;

// A share is rounded up to whole updates.
int64_t warmup_steps_of(const recipe::Count& count, int64_t total_steps) {
  if (count.unit != recipe::CountUnit::kPercent) return count.amount;
  const int64_t whole = recipe::kWholeShare;
  return total_steps / whole * count.amount + (total_steps % whole * count.amount + whole - 1) / whole;
}

Schedule read_schedule(const recipe::Settings& settings, int64_t total_steps) {
  Schedule schedule;
  const std::string kind = settings.text("optim.schedule");
  schedule.kind = kind == "constant" ? ScheduleKind::kConstant
                  : kind == "linear" ? ScheduleKind::kLinear
                  : kind == "cosine" ? ScheduleKind::kCosine
                                     : ScheduleKind::kWsd;
  schedule.total_steps = total_steps;
  schedule.warmup_steps = warmup_steps_of(settings.count("optim.warmup"), total_steps);
  schedule.final_factor = settings.number("optim.final_factor");
  schedule.wsd_decay = settings.number("optim.wsd_decay");
  return schedule;
}

LossScale::Options read_loss_scale(const recipe::Settings& settings) {
  LossScale::Options options;
  options.start = settings.number("optim.loss_scale_start");
  options.growth_interval = settings.integer("optim.loss_scale_growth_interval");
  options.floor = settings.number("optim.loss_scale_floor");
  if (options.start < options.floor) {
    throw UsageError(
        fmt::format("optim.loss_scale_start = {} {} is below optim.loss_scale_floor = {} {}: wanted it at "
                    "the floor or above",
                    options.start, settings.where("optim.loss_scale_start"), options.floor,
                    settings.where("optim.loss_scale_floor")));
  }
  return options;
}

double read_rate(const recipe::Settings& settings, const std::string& name, double factor = 1) {
  const double rate = factor * settings.number(name);
  return settings.enabled("train.safe_mode") ? std::min(rate, kSafeRate) : rate;
}

double read_clip(const recipe::Settings& settings) {
  const double clip = settings.number("optim.clip");
  if (!settings.enabled("train.safe_mode")) return clip;
  return clip > 0 ? std::min(clip, kSafeClip) : kSafeClip;
}

// A share in [0, 1). A beta of 1 would never move, and its bias correction would divide by zero.
double read_share(const recipe::Settings& settings, const std::string& name) {
  const double share = settings.number(name);
  if (share >= 1.0) throw UsageError(fmt::format("{} = {} {}: wanted less than 1", name, share, settings.where(name)));
  return share;
}

}  // namespace

OptimizerOptions read_optimizer_options(const recipe::Settings& settings, int64_t total_steps) {
  OptimizerOptions options;
  const double factor = settings.number("optim.projector_factor");
  options.base_rate = {{"student", read_rate(settings, "optim.learning_rate")},
                       {"projector", read_rate(settings, "optim.learning_rate", factor)},
                       {"router", read_rate(settings, "optim.router_learning_rate")}};
  options.schedule = read_schedule(settings, total_steps);
  options.adamw.beta1 = read_share(settings, "optim.beta1");
  options.adamw.beta2 = read_share(settings, "optim.beta2");
  options.adamw.epsilon = settings.number("optim.epsilon");
  options.weight_decay = settings.number("optim.weight_decay");
  options.clip = read_clip(settings);
  options.ema_decay = read_share(settings, "optim.ema");
  options.loss_scale = read_loss_scale(settings);
  options.max_skipped = settings.integer("optim.max_skipped");
  return options;
}

}  // namespace limbeck::optim
