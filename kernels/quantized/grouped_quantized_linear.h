// Products of rows that are sorted by group, each group with a packed matrix of its own (grouped_linear.h,
// quantized_linear.h). The matrices are frozen: gradients go to the rows.
//
// On the CPU a row has the bits that quantized_linear gives it with the matrix of its group, whatever rows and groups
// are beside it. On CUDA, where the host knows no group's end, the whole stack is unpacked in the dtype of the rows,
// each value rounded once, for the time of the product; formats called dynamic are for the CPU alone.
#pragma once
#include "kernels/quantized/quantized_stack.h"

namespace limbeck::kernels {

// rows [R, columns] float32, bfloat16 or float16, ends int32 [count]: where those of each group end -> [R, rows]
at::Tensor grouped_quantized_linear(const at::Tensor& rows, const QuantizedStack& weight, const at::Tensor& ends);
// Its gradient of the rows: dy [R, rows] -> [R, columns]
at::Tensor grouped_quantized_backward(const at::Tensor& dy, const QuantizedStack& weight, const at::Tensor& ends);

}  // namespace limbeck::kernels
