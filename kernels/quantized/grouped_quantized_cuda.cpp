// The grouped products with packed matrices on CUDA: the host knows no group's end, so the stack is unpacked whole, in
// the dtype of the rows, for one grouped product that waits for nobody.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "kernels/grouped_linear/grouped_linear.h"
#include "kernels/operator/checks.h"
#include "kernels/quantized/grouped_quantized_operands.h"
#include "kernels/quantized/quantized_cuda.h"
#include "kernels/quantized/quantized_operands.h"

namespace limbeck::kernels {
namespace {

at::Tensor unpacked_stack(const QuantizedStack& weight, const at::Tensor& like) {
  at::Tensor values = at::empty({weight.count, weight.rows, weight.columns}, like.options());
  for (int64_t i = 0; i < weight.count; ++i) {
    launch_dequantize(view_of(weight.matrix(i)), 0, weight.rows, storage_of(values),
                      values.select(0, i).mutable_data_ptr(), c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return values;
}

at::Tensor grouped_forward_cuda(const at::Tensor& rows, at::TensorList parts, c10::string_view format, int64_t out,
                                int64_t in, const at::Tensor& ends) {
  const c10::cuda::CUDAGuard guard(rows.device());
  const QuantizedStack weight = checked_stack(StackSide::kForward, rows, parts, format, out, in, ends);
  TORCH_CHECK(!weight.format.dynamic, "[grouped_quantized_linear] the weights are ", format,
              ", which experts are in on the CPU alone: take its format without -dynamic on a GPU");
  return grouped_linear(rows, unpacked_stack(weight, rows), ends);
}

at::Tensor grouped_backward_cuda(const at::Tensor& dy, at::TensorList parts, c10::string_view format, int64_t out,
                                 int64_t in, const at::Tensor& ends) {
  const c10::cuda::CUDAGuard guard(dy.device());
  const QuantizedStack weight = checked_stack(StackSide::kBackward, dy, parts, format, out, in, ends);
  return grouped_linear(dy, unpacked_stack(weight, dy).transpose(1, 2), ends);
}

TORCH_LIBRARY_IMPL(limbeck, CUDA, m) {
  m.impl("grouped_quantized_linear", &grouped_forward_cuda);
  m.impl("grouped_quantized_backward", &grouped_backward_cuda);
}

}  // namespace
}  // namespace limbeck::kernels
