#include "kernels/quantized/quantized_stack.h"

namespace limbeck::kernels {

std::vector<QuantizedPart> parts_of_stack(QuantizedFormat format, int64_t count, int64_t rows, int64_t columns,
                                          at::ScalarType scales) {
  std::vector<QuantizedPart> parts = parts_of(format, rows, columns, scales);
  for (QuantizedPart& part : parts) part.shape.insert(part.shape.begin(), count);
  return parts;
}

QuantizedMatrix QuantizedStack::matrix(int64_t index) const {
  QuantizedMatrix one{format, rows, columns, {}};
  for (const at::Tensor& part : parts) one.parts.push_back(part.select(0, index));
  return one;
}

}  // namespace limbeck::kernels
