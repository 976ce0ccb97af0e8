#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <torch/library.h>

#include <algorithm>
#include <type_traits>

#include "kernels/cpu/scratch_buffer.h"
#include "kernels/cpu/vector_targets.h"
#include "kernels/quantized/quantized_cpu.h"
#include "kernels/quantized/quantized_operands.h"

#ifndef _OPENMP
#error "compile kernels/ with -fopenmp: at::parallel_for is header code and runs on one thread without it"
#endif

namespace limbeck::kernels {
namespace {

// C [m, n] = A [m, k] B [k, n] + bias [n] or nullptr; B is the matrix, or its transpose. A and C have no gaps.
template <class T>
struct QuantizedProduct {
  const T* a;
  const QuantizedView& b;
  bool transposed;
  T* c;
  const T* bias;
  int64_t m, n, k;
};

}  // namespace
}  // namespace limbeck::kernels

#define LIMBECK_VECTOR_BODY "kernels/quantized/quantized_linear.inc"
#include "kernels/cpu/vector_bodies.inc"

namespace limbeck::kernels {
namespace {

template <class T>
void quantized_product(const QuantizedProduct<T>& g) {
  // The longer side of C is cut among the threads.
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  const bool by_rows = g.m >= g.n;
  const int64_t length = by_rows ? g.m : g.n;
  constexpr int64_t unit = 32;
  const int64_t units = (length + unit - 1) / unit;
  const bool small = 2.0 * static_cast<double>(g.m) * static_cast<double>(g.n) * static_cast<double>(g.k) < 1e6;
  const int64_t grain = small ? units : (units + threads - 1) / threads;
  at::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    const int64_t from = begin * unit, to = std::min(end * unit, length);
    const int64_t m0 = by_rows ? from : 0, m1 = by_rows ? to : g.m;
    const int64_t n0 = by_rows ? 0 : from, n1 = by_rows ? g.n : to;
    LIMBECK_ON_VECTOR_TARGET(quantized_share(g, m0, m1, n0, n1));
  });
}

template <class T>
void run_product(const at::Tensor& a, const QuantizedMatrix& matrix, bool transposed, at::Tensor& c,
                 const at::Tensor& bias) {
  const QuantizedView view(matrix);
  const int64_t n = c.size(-1), k = a.size(-1);
  quantized_product<T>({.a = a.const_data_ptr<T>(),
                        .b = view,
                        .transposed = transposed,
                        .c = c.mutable_data_ptr<T>(),
                        .bias = bias.defined() ? bias.const_data_ptr<T>() : nullptr,
                        .m = c.numel() / n,
                        .n = n,
                        .k = k});
}

// transposed: a [..., columns] -> [..., rows]; otherwise a [..., rows] -> [..., columns].
at::Tensor product_with(const at::Tensor& a, const QuantizedMatrix& matrix, bool transposed, const OptionalBias& bias) {
  auto sizes = a.sizes().vec();
  sizes.back() = transposed ? matrix.rows : matrix.columns;
  at::Tensor c = at::empty(sizes, a.options(), at::MemoryFormat::Contiguous);
  if (c.numel() == 0) return c;
  const at::Tensor dense = a.contiguous(), b = bias ? bias->contiguous() : at::Tensor();
  if (dense.size(-1) == 0) return b.defined() ? c.copy_(b.expand_as(c)) : c.zero_();
  switch (a.scalar_type()) {
    case at::kBFloat16:
      run_product<c10::BFloat16>(dense, matrix, transposed, c, b);
      break;
    case at::kHalf:
      run_product<c10::Half>(dense, matrix, transposed, c, b);
      break;
    default:
      run_product<float>(dense, matrix, transposed, c, b);
  }
  return c;
}

at::Tensor quantized_linear_cpu(const at::Tensor& x, at::TensorList parts, c10::string_view format, int64_t rows,
                                int64_t columns, const OptionalBias& bias) {
  const QuantizedMatrix weight = checked_matrix("quantized_linear", parts, format, rows, columns);
  check_quantized_linear(x, weight, bias);
  return product_with(x, weight, /*transposed=*/true, bias);
}

at::Tensor quantized_backward_cpu(const at::Tensor& dy, at::TensorList parts, c10::string_view format, int64_t rows,
                                  int64_t columns) {
  const QuantizedMatrix weight = checked_matrix("quantized_linear_backward", parts, format, rows, columns);
  check_quantized_backward(dy, weight);
  return product_with(dy, weight, /*transposed=*/false, std::nullopt);
}

}  // namespace

TORCH_LIBRARY_IMPL(limbeck, CPU, m) {
  m.impl("quantized_linear", &quantized_linear_cpu);
  m.impl("quantized_linear_backward", &quantized_backward_cpu);
}

}  // namespace limbeck::kernels
