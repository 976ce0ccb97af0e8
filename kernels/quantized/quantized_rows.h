// Rows of a quantized matrix by their numbers (an embedding whose table is packed): w' of each, rounded once to
// `dtype`. The matrix is frozen and ids have no gradient: nothing flows back.
#pragma once
#include "kernels/quantized/quantized_matrix.h"

namespace limbeck::kernels {

// ids int32 or int64 [...], each a row -> [..., columns] of float32, bfloat16 or float16. An id that is none is
// refused, on a GPU at the host's next wait.
at::Tensor quantized_rows(const at::Tensor& ids, const QuantizedMatrix& matrix, at::ScalarType dtype);
// All rows, in order.
at::Tensor all_rows(const QuantizedMatrix& matrix, at::ScalarType dtype);

}  // namespace limbeck::kernels
