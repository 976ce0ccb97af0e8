// What the bodies of limbeck::int8_dynamic_linear share: its checks.
#pragma once
#include "kernels/quantized/int8_dynamic_linear.h"
#include "kernels/quantized/quantized_operands.h"

namespace limbeck::kernels {

// The weight of the parts, beside which x and bias were checked.
QuantizedMatrix checked_int8_dynamic(const at::Tensor& x, at::TensorList parts, int64_t rows, int64_t columns,
                                     const OptionalBias& bias);

}  // namespace limbeck::kernels
