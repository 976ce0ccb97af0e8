// What an optimizer does with gradients and weights, each in one pass over memory: the sums of squares of a gradient,
// its addition to a wider sum, and the AdamW update of weight, master and moments. The first two read half gradients as
// they are; results do not depend on the number of threads.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>

#include "kernels/adamw/square_sums_run.h"

namespace limbeck::kernels {

struct AdamWOptions {
  int64_t step = 1;  // of these parameters, counted from 1: for the bias corrections, which are computed in float64
  double learning_rate = 1e-3;
  double beta1 = 0.9, beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.0;    // decoupled, as torch.optim.AdamW has it
  double gradient_scale = 1.0;  // multiplies the gradient first: unscaling and clipping
};

// Updates in place, all parameters at once: on a GPU in a launch for some sixty of them. Parameters have one dtype, and
// so have gradients: float32, float64, or bfloat16 or float16 with a float32 master each, of which a parameter becomes
// the rounding (`masters` is empty otherwise); moments in float32 (float64); gradients in the dtype of parameters or
// moments.
void adamw_step_(at::TensorList parameters, at::TensorList gradients, at::TensorList masters,
                 at::TensorList first_moments, at::TensorList second_moments, const AdamWOptions& options);

// Sums of the squares of each run of kSquareRun elements of each tensor, one tensor's after the other's, in float64
// [runs]. Not finite exactly where an element of the run is not. The tensors have one dtype; on a GPU some sixty of
// them are one launch.
at::Tensor square_sums(at::TensorList xs);

// How many runs are of a tensor of so many elements.
constexpr int64_t square_runs(int64_t elements) { return (elements + kSquareRun - 1) / kSquareRun; }

// sum += x, where the sum is float32 (float64 for float64) and x may be narrower.
void accumulate_(const at::Tensor& sum, const at::Tensor& x);

}  // namespace limbeck::kernels
