// What a step of autograd keeps of a quantized matrix beside the tensors that it saves: how they are to be read.
#pragma once
#include <torch/csrc/autograd/custom_function.h>

#include <string>
#include <utility>
#include <vector>

#include "kernels/quantized/quantized_matrix.h"

namespace limbeck::kernels {

inline void keep_matrix(torch::autograd::AutogradContext& context, const QuantizedMatrix& matrix) {
  context.saved_data["format"] = std::string(format_name(matrix.format));
  context.saved_data["rows"] = matrix.rows;
  context.saved_data["columns"] = matrix.columns;
}

// `parts`: as they were saved.
inline QuantizedMatrix kept_matrix(torch::autograd::AutogradContext& context, std::vector<at::Tensor> parts) {
  return {format_named(context.saved_data["format"].toStringView()), context.saved_data["rows"].toInt(),
          context.saved_data["columns"].toInt(), std::move(parts)};
}

}  // namespace limbeck::kernels
