// Products of rows that are sorted by group, each group with a weight of its own: the experts of a mixture. How many
// rows a group has is read where the tensors are; on a GPU the host does not wait for it.
#pragma once
#include <ATen/core/Tensor.h>

namespace limbeck::kernels {

// ends int32 [G], beside the rows: where those of each group end, the last at R.

// rows [R, in], weight [G, out, in] -> [R, out], summed in float32 (float64 for float64). Any strides: a weight that
// is transposed is read in place.
at::Tensor grouped_linear(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& ends);

// left [R, M], right [R, N] -> [G, M, N]: left^T right over the rows of each group; zeros where it has none.
at::Tensor grouped_outer(const at::Tensor& left, const at::Tensor& right, const at::Tensor& ends);

}  // namespace limbeck::kernels
