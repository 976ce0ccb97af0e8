// Rounding of a frozen matrix W [rows, columns] to the codes of a format where what one column loses is made up for by
// the columns behind it (GPTQ): so that x W^T changes least, over the inputs x whose second moments H = sum of x^T x
// are known, and not W itself. Scales and zeros are those of rounding to nearest, fixed before any order of columns:
// the parts are stored as any others. Of 2 and 3 bits those of a fitted range (fitted_range.h; a column counts what the
// diagonal of H says) are tried too, and a row takes the ones by which it errs less.
//   H + damping * mean diagonal * I = R D R^T, columns in order of falling diagonal of H, R upper triangular, ones on
//   its diagonal. Column by column, e being what the columns before it lost: wanted = w + sum of e R; code = the
//   nearest to wanted; e = w - w'. The error of a row, e H e^T, is then the sum of D (wanted - w')^2.
// These are the codes of the Cholesky factor of H's inverse, without an inverse. A row that this makes worse than
// rounding to nearest does (it may: each column is chosen without regard to those behind) is rounded to nearest.
// Everything is float64 and CPU, with the same bits on any number of threads.
#pragma once
#include "kernels/quantized/quantized_matrix.h"

namespace limbeck::kernels {

// The upper triangle of `sums`, float64 [columns, columns], grows by that of x^T x; x [rows, columns] in float32,
// bfloat16 or float16. The sums run in the order of the rows.
void add_second_moments(at::Tensor& sums, const at::Tensor& x);

// What H says of the columns, for every matrix that has these inputs.
struct Compensation {
  at::Tensor feedback;  // float64 [columns, columns]: R, by places in the order
  at::Tensor pivots;    // float64 [columns]: D
  at::Tensor order;     // int64 [columns]: the column at each place
  double damping = 0;   // share of the mean diagonal: 0.01, or the first power of ten above that leaves H positive
};
// Of the upper triangle of the sums. A c10::Error where they are not finite or are those of no inputs.
Compensation compensation_of(const at::Tensor& sums);

struct CompensatedMatrix {
  QuantizedMatrix matrix;
  double nearest = 0, compensated = 0;  // e H e^T over all rows, H damped: of rounding to nearest, and as it is now
};
CompensatedMatrix quantize_compensated(const at::Tensor& weight, const Compensation& compensation,
                                       QuantizedFormat format, at::ScalarType scales = at::kFloat);

}  // namespace limbeck::kernels
