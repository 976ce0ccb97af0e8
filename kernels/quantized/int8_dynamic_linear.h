// y = x W'^T + b where rows of x are quantized too while they are read, so that 8-bit codes are multiplied, on the CPU.
// A row of x: scale = max |x| / 127, code = round(x / scale) to nearest even within ±127; codes of x and W are summed
// up exactly in int32, and y = (sum scale_x) scale_w + b in float32, rounded once to the dtype of x. The bits of a row
// depend on nothing but the row and the weight: not on other rows, threads or the instruction set. A row that is not
// finite gives NaN. The gradient of x goes straight through the rounding of x: dy W', as quantized_linear has it.
#pragma once
#include <optional>

#include "kernels/quantized/quantized_matrix.h"

namespace limbeck::kernels {

// More columns could overflow the sums.
inline constexpr int64_t kMostInt8Columns = int64_t{1} << 17;

// x [..., columns] float32, bfloat16 or float16, weight in int8, bias [rows] of the dtype of x or none -> [..., rows]
at::Tensor int8_dynamic_linear(const at::Tensor& x, const QuantizedMatrix& weight,
                               const std::optional<at::Tensor>& bias = std::nullopt);

}  // namespace limbeck::kernels
