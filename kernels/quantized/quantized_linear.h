// y = x W'^T + b with a frozen W in 8 to 2 bits, of which at most a few hundred rows by a few hundred columns exist
// unpacked at a time. Sums are float32 and rounded once to the dtype of x. Gradients go to x and to b. Beside bfloat16
// x the values of W' are rounded once to bfloat16, as a linear layer of that dtype has them, beside float16 x on CUDA
// alone: for any number of rows and in gradients. On the CPU a row has the same bits among few rows (up to 16: codes go
// straight to the sums) as among many, so that what is generated is what was evaluated: chained_product.h has the
// order. On CUDA up to 64 MiB of W' are unpacked at a time.
//
// In formats called dynamic rows of x are codes too: scale = max |x| / 127.5, code = round(x / scale) to nearest even
// within -128 to 127, as compressed-tensors and torchao have it. Codes of x and W are multiplied and summed up exactly
// in int32, and y = (sum scale_x) scale_w + b in float32, rounded once to the dtype of x; of int4 the sum is one for
// each group, and y = (sums scale_w, in sixteen chains) scale_x + b: group g is added to chain g modulo 16, then the
// chains one after the other. int4 is for the CPU alone. The bits of a row depend on nothing but the row and the
// weight: not on other rows, threads, the instruction set or the device. A row that is not finite gives NaN. The
// gradient of x goes straight through its rounding: dy W'.
#pragma once
#include <optional>

#include "kernels/quantized/quantized_matrix.h"

namespace limbeck::kernels {

// Of a matrix in int8-dynamic, whose sums are of whole rows: more could overflow.
inline constexpr int64_t kMostInt8Columns = (int64_t{1} << 17) - 1;

// x [..., columns] float32, bfloat16 or float16, bias [rows] of the same dtype or none -> [..., rows]
at::Tensor quantized_linear(const at::Tensor& x, const QuantizedMatrix& weight,
                            const std::optional<at::Tensor>& bias = std::nullopt);
// Its gradient of x: dy [..., rows] -> [..., columns]
at::Tensor quantized_linear_backward(const at::Tensor& dy, const QuantizedMatrix& weight);

}  // namespace limbeck::kernels
