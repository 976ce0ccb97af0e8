// What every backend of the distances does first: checks the arguments and allocates the results.
#pragma once
#include <ATen/core/Tensor.h>

#include <tuple>

namespace limbeck::kernels {

using DistanceTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // as in PredictionDistances

at::Tensor log_sums_output(const at::Tensor& logits);
DistanceTensors distances_output(const at::Tensor& logits, const at::Tensor& reference, const at::Tensor& of_reference);

}  // namespace limbeck::kernels
