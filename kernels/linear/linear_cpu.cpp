#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include <optional>

#include "kernels/linear/half_gemm_cpu.h"
#include "kernels/linear/linear_cpu.h"

namespace limbeck::kernels {
namespace {

// A matrix as half_gemm reads it: one of its two dimensions contiguous, or else copied.
struct Operand {
  at::Tensor tensor;
  int64_t row_stride = 0;
  bool transposed = false;

  explicit Operand(const at::Tensor& t) : tensor(t) {
    if (t.stride(1) == 1 || t.size(1) == 1) {
      row_stride = t.size(0) == 1 ? t.size(1) : t.stride(0);
    } else if (t.stride(0) == 1 || t.size(0) == 1) {
      row_stride = t.stride(1);
      transposed = true;
    } else {
      tensor = t.contiguous();
      row_stride = t.size(1);
    }
  }
  const Float16Bits* data() const { return static_cast<const Float16Bits*>(tensor.const_data_ptr()); }
};

// y: rows with adjacent elements.
void half_linear_into(const at::Tensor& y, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const int64_t in = weight.size(1), out = weight.size(0);
  const Operand a(x.dim() == 2 ? x : x.reshape({-1, in}));
  const Operand w(weight);
  half_gemm({.a = a.data(),
             .lda = a.row_stride,
             .a_transposed = a.transposed,
             .b = w.data(),
             .ldb = w.row_stride,
             .b_transposed = !w.transposed,  // the weight [out, in] is the right operand transposed
             .c = static_cast<Float16Bits*>(y.mutable_data_ptr()),
             .ldc = y.size(-1) == y.numel() ? out : y.stride(-2),
             .bias = bias.defined() ? static_cast<const Float16Bits*>(bias.const_data_ptr()) : nullptr,
             .m = a.tensor.size(0),
             .n = out,
             .k = in});
}

at::Tensor half_linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  auto sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  const auto y = at::empty(sizes, x.options(), at::MemoryFormat::Contiguous);
  half_linear_into(y, x, weight, bias ? bias->contiguous() : at::Tensor());
  return y;
}

bool is_widened(const at::Tensor& x, const at::Tensor& weight) {
  // Empty products keep ATen's conventions.
  return x.scalar_type() == at::kHalf && half_gemm_path() == HalfGemmPath::kWiden && x.numel() > 0 &&
         weight.numel() > 0;
}

// Reached below autograd; linear_autograd has checked the operands unless grad dispatch was off.
at::Tensor linear_cpu(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  return is_widened(x, weight) ? half_linear(x, weight, bias) : at::linear(x, weight, bias);
}

}  // namespace

void linear_into(const at::Tensor& y, const at::Tensor& x, const at::Tensor& weight) {
  if (is_widened(x, weight)) return half_linear_into(y, x, weight, at::Tensor());
  at::Tensor to = y;
  at::mm_out(to, x, weight.t());
}

TORCH_LIBRARY_IMPL(limbeck, CPU, m) { m.impl("linear", &linear_cpu); }

}  // namespace limbeck::kernels
