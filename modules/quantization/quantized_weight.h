// The frozen weight of a linear module in 8 or 4 bits: the packed tensors of one kernels::QuantizedMatrix on one
// device. It owns every byte that stands for the weight; nothing of it is a parameter, and no float copy is kept.
#pragma once
#include <string>
#include <vector>

#include "kernels/quantized/quantized_matrix.h"
#include "modules/named_kind.h"

namespace limbeck::quantization {

const std::vector<NamedKind>& quantized_formats();

class QuantizedWeight {
 public:
  // Uninitialised: to be replaced when weights are read, or left so on meta.
  QuantizedWeight(kernels::QuantizedFormat format, int64_t rows, int64_t columns, c10::Device device);
  // Quantized from a float matrix on the CPU, then placed on `device`.
  QuantizedWeight(const at::Tensor& weight, kernels::QuantizedFormat format, c10::Device device);

  const kernels::QuantizedMatrix& matrix() const { return matrix_; }
  kernels::QuantizedFormat format() const { return matrix_.format; }
  // Numbers that it stands for, and the bytes that it takes.
  int64_t values() const { return matrix_.rows * matrix_.columns; }
  int64_t bytes() const;
  bool operator==(const QuantizedWeight& other) const;

  // Where its parts break what a weight of this format, shape and device consists of; one line each, without the place.
  std::vector<std::string> violations(kernels::QuantizedFormat format, int64_t rows, int64_t columns,
                                      c10::Device device) const;

 private:
  kernels::QuantizedMatrix matrix_;
};

}  // namespace limbeck::quantization
