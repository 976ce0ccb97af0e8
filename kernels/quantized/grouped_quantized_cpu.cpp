#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "kernels/grouped_linear/cpu_groups.h"
#include "kernels/quantized/grouped_quantized_operands.h"
#include "kernels/quantized/quantized_cpu.h"

namespace limbeck::kernels {
namespace {

at::Tensor grouped_product(StackSide side, const at::Tensor& a, const QuantizedStack& weight, const at::Tensor& ends) {
  at::Tensor out = stack_output(side, a, weight);
  const bool forward = side == StackSide::kForward;
  const char* op = forward ? "grouped_quantized_linear" : "grouped_quantized_backward";
  for_cpu_groups(op, ends, a.size(0), [&](int64_t group, int64_t begin, int64_t count) {
    if (count == 0) return;
    const QuantizedMatrix matrix = weight.matrix(group);
    const at::Tensor rows = a.narrow(0, begin, count);
    at::Tensor result = out.narrow(0, begin, count);
    if (forward && weight.format.dynamic) {
      result.copy_(dynamic_product(rows, matrix, std::nullopt));
    } else {
      quantized_product_into(result, rows, matrix, /*transposed=*/forward, std::nullopt);
    }
  });
  return out;
}

at::Tensor grouped_forward_cpu(const at::Tensor& rows, at::TensorList parts, c10::string_view format, int64_t out,
                               int64_t in, const at::Tensor& ends) {
  const QuantizedStack weight = checked_stack(StackSide::kForward, rows, parts, format, out, in, ends);
  return grouped_product(StackSide::kForward, rows, weight, ends);
}

at::Tensor grouped_backward_cpu(const at::Tensor& dy, at::TensorList parts, c10::string_view format, int64_t out,
                                int64_t in, const at::Tensor& ends) {
  const QuantizedStack weight = checked_stack(StackSide::kBackward, dy, parts, format, out, in, ends);
  return grouped_product(StackSide::kBackward, dy, weight, ends);
}

TORCH_LIBRARY_IMPL(limbeck, CPU, m) {
  m.impl("grouped_quantized_linear", &grouped_forward_cpu);
  m.impl("grouped_quantized_backward", &grouped_backward_cpu);
}

}  // namespace
}  // namespace limbeck::kernels
