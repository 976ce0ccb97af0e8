// What every backend of the optimizer's operators shares: argument checks, and the arguments of the loops. The Meta
// kernels are the checks alone.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

#include "kernels/adamw/adamw_loops.h"

namespace limbeck::kernels {

struct AdamWTensors {
  const at::Tensor &parameter, &gradient;
  const std::optional<at::Tensor>& master;
  const at::Tensor &first, &second;
};

void check_adamw(const AdamWTensors& tensors, int64_t step);
// `gradient`: contiguous, of the checked gradient's values.
AdamWArguments adamw_arguments(const AdamWTensors& tensors, const at::Tensor& gradient, int64_t step,
                               double learning_rate, double beta1, double beta2, double epsilon, double weight_decay,
                               double gradient_scale);
at::Tensor square_sums_output(const at::Tensor& x);
void check_accumulate(const at::Tensor& sum, const at::Tensor& x);

}  // namespace limbeck::kernels
