// What the bodies of the grouped products with packed matrices share: checks, and the signatures of
//   limbeck::grouped_quantized_linear    -> y, with autograd for the rows
//   limbeck::grouped_quantized_backward  -> dx
#pragma once
#include "kernels/quantized/quantized_stack.h"

namespace limbeck::kernels {

enum class StackSide { kForward, kBackward };

// The stack of parts that an operator was given, whose number of matrices is that of the ends. Its parts, and the
// operand a [R, columns] (backward: [R, rows]), are checked.
QuantizedStack checked_stack(StackSide side, const at::Tensor& a, at::TensorList parts, std::string_view format,
                             int64_t rows, int64_t columns, const at::Tensor& ends);

// Not filled.
at::Tensor stack_output(StackSide side, const at::Tensor& a, const QuantizedStack& weight);

}  // namespace limbeck::kernels
