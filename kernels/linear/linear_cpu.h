// A product into rows that are there already, of whatever multiplies the dtype on this processor.
#pragma once
#include <ATen/core/Tensor.h>

namespace limbeck::kernels {

// y = x weight^T, x [rows, in], weight [out, in], y [rows, out] with adjacent elements: the bits of linear(). No
// gradient goes through it.
void linear_into(const at::Tensor& y, const at::Tensor& x, const at::Tensor& weight);

}  // namespace limbeck::kernels
