// What every backend of the optimizer's operators shares: argument checks, and the arguments of the loops. The Meta
// kernels are the checks alone.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "kernels/adamw/adamw_loops.h"

namespace limbeck::kernels {

// The tensors of an update by parameter; no masters, or one for each.
struct AdamWLists {
  at::TensorList parameters, gradients, masters, first, second;
};

void check_adamw(const AdamWLists& lists, int64_t step);

// Of checked lists. Holds the gradients whose strides forbade to read them where they are.
struct AdamWWork {
  AdamWWork(const AdamWLists& lists, int64_t step, double learning_rate, double beta1, double beta2, double epsilon,
            double weight_decay, double gradient_scale);

  std::vector<at::Tensor> dense_gradients;
  AdamWArguments arguments;
  std::vector<AdamWTensor> tensors;
};

at::Tensor square_sums_output(at::TensorList xs);

// Of checked tensors. Holds those whose strides forbade to read them where they are.
struct SquareSumsWork {
  explicit SquareSumsWork(at::TensorList xs);

  std::vector<at::Tensor> dense;
  std::vector<SquaredTensor> tensors;
  Storage storage;
};

void check_accumulate(const at::Tensor& sum, const at::Tensor& x);

}  // namespace limbeck::kernels
