// y = x W^T + b for storage in float32, bfloat16 or float16, accumulated in float32.
// On CPUs without float16 GEMM the float16 path widens its operands in tiles instead of ATen's slow loop
// (half_gemm_cpu.h). On CUDA it forbids cuBLAS, process-wide, to reduce in the storage dtype.
#pragma once
#include <ATen/core/Tensor.h>
#include <optional>

namespace limbeck::kernels {

// x [..., in], weight [out, in], bias [out] or none, all of one dtype and device -> [..., out]
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias = std::nullopt);

}  // namespace limbeck::kernels
