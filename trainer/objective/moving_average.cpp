#include "trainer/objective/moving_average.h"

#include "kernels/operator/wide_type.h"
#include "modules/precision/casts.h"

namespace limbeck::objective {

MovingAverage::MovingAverage(models::BuiltModel& teacher, const models::BuiltModel& student, double decay)
    : decay_(decay) {
  const at::NoGradGuard no_gradient;
  const auto theirs = student.model->named_parameters();
  for (auto& entry : teacher.model->named_parameters()) {
    const at::Tensor& own = entry.value();
    const at::ScalarType wide = kernels::wide_type(own.scalar_type());
    at::Tensor average = own;
    if (own.scalar_type() != wide) {
      average = at::empty(own.sizes(), own.options().dtype(wide));
      precision::cast_into(average, theirs[entry.key()]);
    }
    entries_.push_back({"teacher_ema." + entry.key(), own, theirs[entry.key()], average});
  }
}

void MovingAverage::follow() {
  const at::NoGradGuard no_gradient;
  for (Entry& entry : entries_) {
    at::Tensor now = entry.student.detach();
    if (now.scalar_type() != entry.average.scalar_type()) {
      now = at::empty(entry.average.sizes(), entry.average.options());
      precision::cast_into(now, entry.student, "teacher (average, the student's weights)");
    }
    entry.average.lerp_(now, 1.0 - decay_);
  }
  refresh();
}

void MovingAverage::refresh() {
  const at::NoGradGuard no_gradient;
  for (Entry& entry : entries_) {
    if (!entry.average.is_same(entry.teacher))
      precision::cast_into(entry.teacher, entry.average, "teacher (from its average)");
  }
}

std::vector<std::pair<std::string, at::Tensor>> MovingAverage::tensors() const {
  std::vector<std::pair<std::string, at::Tensor>> found;
  for (const Entry& entry : entries_) found.emplace_back(entry.name, entry.average);
  return found;
}

}  // namespace limbeck::objective
