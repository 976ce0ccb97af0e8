#include "trainer/optim/optimizer_settings.h"

#include <fmt/format.h>

#include "modules/errors.h"

namespace limbeck::optim {

Schedule read_schedule(const recipe::Settings& settings, int64_t total_steps) {
  Schedule schedule;
  const std::string kind = settings.text("optim.schedule");
  schedule.kind = kind == "constant" ? ScheduleKind::kConstant
                  : kind == "linear" ? ScheduleKind::kLinear
                  : kind == "cosine" ? ScheduleKind::kCosine
                                     : ScheduleKind::kWsd;
  schedule.total_steps = total_steps;
  schedule.warmup_steps = settings.count("optim.warmup").amount;
  schedule.final_factor = settings.number("optim.final_factor");
  schedule.wsd_decay = settings.number("optim.wsd_decay");
  return schedule;
}

LossScale read_loss_scale(const recipe::Settings& settings, bool needed) {
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
  return needed ? LossScale(options) : LossScale();
}

double read_share(const recipe::Settings& settings, const std::string& name) {
  const double share = settings.number(name);
  if (share >= 1.0) throw UsageError(fmt::format("{} = {} {}: wanted less than 1", name, share, settings.where(name)));
  return share;
}

}  // namespace limbeck::optim
