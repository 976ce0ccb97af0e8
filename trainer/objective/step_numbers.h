// Numbers of an update that operators read where the models are, instead of being told: operators that were recorded
// once can then be played again for another update. Each has a formula; the first forward makes the tensors, later ones
// get them in the same order, and refill() gives them the numbers of another update.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "trainer/data/batch.h"
#include "trainer/objective/terms.h"

namespace limbeck::objective {

class StepNumbers {
 public:
  using Formula = std::function<c10::Scalar(const Progress& progress, const data::Batch& batch)>;

  // 0-dim. The formula is kept: what it holds it holds by value.
  at::Tensor next(const Formula& formula, const at::TensorOptions& options, const Progress& progress,
                  const data::Batch& batch);
  // The next forward begins with the first one again. No tensor is made from here on.
  void close();
  void refill(const Progress& progress, const data::Batch& batch);

 private:
  struct Number {
    at::Tensor tensor;
    Formula formula;
  };
  std::vector<Number> numbers_;
  size_t next_ = 0;
  bool closed_ = false;
};

// What terms are divided by: the targets and the rows of the whole update, at least 1.
double targets_of(const Progress& progress, const data::Batch& batch);
double sequences_of(const Progress& progress, const data::Batch& batch);

}  // namespace limbeck::objective
