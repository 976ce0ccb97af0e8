#include "trainer/optim/loss_scale.h"

#include <algorithm>

namespace limbeck::optim {

namespace {
// float16 spans 2^-24 to 2^16: a gradient that needs more than this is not there.
constexpr double kCeiling = 0x1p40;
}  // namespace

void LossScale::update_was_good() {
  if (!enabled_ || ++good_updates_ < options_.growth_interval) return;
  good_updates_ = 0;
  value_ = std::max(value_, std::min(value_ * 2.0, kCeiling));
}

void LossScale::update_overflowed() {
  if (!enabled_) return;
  good_updates_ = 0;
  value_ = std::max(value_ * 0.5, options_.floor);
}

void LossScale::restore(double value, int64_t good_updates) {
  value_ = value;
  good_updates_ = good_updates;
}

}  // namespace limbeck::optim
