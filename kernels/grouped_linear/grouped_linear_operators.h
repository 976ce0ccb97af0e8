// What every backend of the grouped products shares: argument checks and output tensors.
#pragma once
#include <ATen/core/Tensor.h>

namespace limbeck::kernels {

// rows [R, columns] of a floating dtype, called `name` in messages; ends int32 [groups] beside them.
void check_rows_and_ends(const char* op, const char* name, const at::Tensor& rows, const at::Tensor& ends);
void check_grouped_linear(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& ends);
void check_grouped_outer(const at::Tensor& left, const at::Tensor& right, const at::Tensor& ends);

// Checked before.
at::Tensor grouped_linear_output(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& ends);
at::Tensor grouped_outer_output(const at::Tensor& left, const at::Tensor& right, const at::Tensor& ends);

}  // namespace limbeck::kernels
