// Matrices of one format and size, one after another: the experts of a mixture. Each part is that of quantized_matrix.h
// with one dimension more in front, so that a matrix of the stack is what it would be alone, to the bit.
#pragma once
#include "kernels/quantized/quantized_matrix.h"

namespace limbeck::kernels {

// As parts_of(), of `count` matrices.
std::vector<QuantizedPart> parts_of_stack(QuantizedFormat format, int64_t count, int64_t rows, int64_t columns,
                                          at::ScalarType scales = at::kFloat);

struct QuantizedStack {
  QuantizedFormat format = QuantizedFormat::kInt8;
  int64_t count = 0, rows = 0, columns = 0;  // rows and columns of each
  std::vector<at::Tensor> parts;             // as parts_of_stack() lists them

  QuantizedMatrix matrix(int64_t index) const;  // shares its part of the stack's parts
};

}  // namespace limbeck::kernels
