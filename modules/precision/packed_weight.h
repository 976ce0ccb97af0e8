// A frozen weight matrix in 8 to 2 bits a value, or a stack of such (the experts of a layer): the packed tensors
// ("parts") of one kernels::QuantizedMatrix or QuantizedStack on one device. It owns every byte that stands for the
// weight; nothing of it is a parameter, and no float copy is kept. Copies share the parts.
#pragma once
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "kernels/quantized/quantized_stack.h"

namespace limbeck::precision {

// Of a matrix, or of each of a stack.
struct PackedShape {
  int64_t rows, columns;
  int64_t count = 0;  // of the matrices in a stack; 0: no stack
};

class PackedWeight {
 public:
  // Uninitialised: to be replaced when weights are read, or left so on meta.
  PackedWeight(kernels::QuantizedFormat format, int64_t rows, int64_t columns, c10::Device device);
  PackedWeight(kernels::QuantizedFormat format, const PackedShape& shape, c10::Device device,
               at::ScalarType scales = at::kFloat);
  // Quantized from a float matrix on the CPU, then placed on `device`. Scales are float32 but where a file is to hold
  // them in another dtype: what codes stand for does not depend on the dtype that they are computed beside.
  PackedWeight(const at::Tensor& weight, kernels::QuantizedFormat format, c10::Device device,
               at::ScalarType scales = at::kFloat);
  // From the tensors of its parts, as parts_of() lists them.
  explicit PackedWeight(kernels::QuantizedMatrix matrix);

  const kernels::QuantizedMatrix& matrix() const;  // std::logic_error for a stack
  kernels::QuantizedStack stack() const;           // std::logic_error for a matrix
  int64_t count() const { return count_; }         // of matrices in a stack; 0: it is one matrix
  // One matrix of a stack, which shares its parts.
  PackedWeight member(int64_t index) const;
  // Takes over what the member stands for, which is of the same format and shape. Scales are in the dtype of the first
  // one's: std::logic_error for another.
  void put(int64_t index, const PackedWeight& member);
  kernels::QuantizedFormat format() const { return matrix_.format; }
  // By their names in the format: "codes", "scales", …
  std::vector<std::pair<std::string, at::Tensor>> parts() const;
  at::Tensor part(const std::string& name) const;  // std::logic_error where the format has none of this name
  // What rows of codes stand for, float32 [count, columns]. Meant for some rows at a time.
  at::Tensor rows(int64_t row, int64_t count) const { return kernels::dequantize_rows(matrix(), row, count); }
  // The same on another device.
  PackedWeight on(c10::Device device) const;
  // Numbers that it stands for, and the bytes that it takes.
  int64_t values() const { return std::max<int64_t>(count_, 1) * matrix_.rows * matrix_.columns; }
  int64_t bytes() const;
  bool same_form(const PackedWeight& other) const;  // format and shape
  bool operator==(const PackedWeight& other) const;

  // Where its parts break what a weight of this format, shape and device consists of; one line each, without the place.
  std::vector<std::string> violations(kernels::QuantizedFormat format, const PackedShape& shape,
                                      c10::Device device) const;

 private:
  kernels::QuantizedMatrix matrix_;  // of a stack: rows and columns of each, the parts of all
  int64_t count_ = 0;
};

}  // namespace limbeck::precision
