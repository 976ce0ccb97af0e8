// What the products with a quantized matrix hold on a GPU. Of the matrix as many rows are unpacked at a time as a
// scratch of 64 MiB holds, and a multiple of what keeps the runs of the result aligned. The Meta kernels plan by it.
#pragma once
#include <cstdint>

#include "kernels/quantized/quantized_formula.h"

namespace limbeck::kernels {

// As many rows of x a product takes that reads the codes once; more of them are worth unpacked weights and a GEMM.
inline constexpr int64_t kFewRows = 8;

// At least 1, at most `rows` (but for 0).
int64_t unpacked_rows_at_once(int64_t rows, int64_t columns, int64_t value_bytes);

// Whether the gradient of x is one product, and no sum of several.
bool unpacked_at_once(int64_t rows, int64_t columns, int64_t value_bytes);

// Of codes, scales and sums of rows of x, in a product with a matrix for which they are codes too.
int64_t row_codes_bytes(const QuantizedFormat& format, int64_t count, int64_t columns);
// Whether cuBLAS takes the sums of their products, which it does of more than 16 rows and of even shapes.
bool sums_by_cublas(int64_t count, int64_t rows, int64_t columns);

// Bytes at the peak beside operands and result, of a product of `count` rows of x or dy with a matrix [rows, columns].
int64_t cuda_product_scratch(const QuantizedFormat& format, int64_t count, int64_t rows, int64_t columns,
                             int64_t value_bytes);
int64_t cuda_gradient_scratch(int64_t count, int64_t rows, int64_t columns, int64_t value_bytes);

// For tests: a bound other than 64 MiB; 0 brings it back.
void set_unpacked_bytes(int64_t bytes);

}  // namespace limbeck::kernels
