#include "trainer/objective/step_numbers.h"

#include <ATen/ops/full.h>

#include <algorithm>
#include <stdexcept>

namespace limbeck::objective {

at::Tensor StepNumbers::next(const Formula& formula, const at::TensorOptions& options, const Progress& progress,
                             const data::Batch& batch) {
  if (!closed_) numbers_.push_back({at::full({}, formula(progress, batch), options), formula});
  if (next_ == numbers_.size()) throw std::logic_error("a forward asks for more numbers than the one before it");
  return numbers_[next_++].tensor;
}

void StepNumbers::close() {
  closed_ = true;
  next_ = 0;
}

void StepNumbers::refill(const Progress& progress, const data::Batch& batch) {
  for (const Number& number : numbers_) number.tensor.fill_(number.formula(progress, batch));
}

double targets_of(const Progress& progress, const data::Batch& batch) {
  const int64_t targets = progress.update_targets > 0 ? progress.update_targets : data::target_count(batch.student);
  return static_cast<double>(std::max<int64_t>(targets, 1));
}

double sequences_of(const Progress& progress, const data::Batch& batch) {
  const int64_t rows = progress.update_sequences > 0 ? progress.update_sequences : batch.student.ids.size(0);
  return static_cast<double>(std::max<int64_t>(rows, 1));
}

}  // namespace limbeck::objective
