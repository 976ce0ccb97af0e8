// The quantized operators on CUDA. Products with a few rows read the codes (quantized.cu); those with more unpack runs
// of weight rows in the dtype of x, rounded once, and leave the product to cuBLAS. Weights are quantized on the CPU and
// moved.
#include "kernels/quantized/quantized_cuda.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/_assert_async.h>
#include <ATen/ops/_int_mm.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <string>

#include "kernels/operator/checks.h"
#include "kernels/operator/wide_type.h"
#include "kernels/quantized/int8_dynamic_cuda.h"
#include "kernels/quantized/quantized_operands.h"
#include "kernels/quantized/quantized_plan.h"
#include "kernels/quantized/row_codes.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;

void dequantize_into(const QuantizedMatrix& weight, int64_t row, const Tensor& values) {
  launch_dequantize(view_of(weight), row, values.size(0), storage_of(values), values.mutable_data_ptr(),
                    c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// Calls body(row, values) with runs of rows, unpacked in the dtype of `like` into one scratch.
template <class Body>
void for_unpacked_runs(const QuantizedMatrix& weight, const Tensor& like, Body body) {
  const int64_t run = unpacked_rows_at_once(weight.rows, weight.columns, like.element_size());
  const Tensor scratch = at::empty({run, weight.columns}, like.options());
  for (int64_t row = 0; row < weight.rows; row += run) {
    const Tensor values = scratch.narrow(0, 0, std::min(run, weight.rows - row));
    dequantize_into(weight, row, values);
    body(row, values);
  }
}

Tensor few_rows(const Tensor& x, const QuantizedMatrix& weight, const OptionalBias& bias, Tensor y) {
  const Tensor dense_bias = bias ? bias->contiguous() : Tensor();
  launch_few_rows_product(
      storage_of(x),
      {view_of(weight), x.const_data_ptr(), dense_bias.defined() ? dense_bias.const_data_ptr() : nullptr,
       y.mutable_data_ptr(), x.size(0)},
      c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}

struct RowCodes {
  Tensor codes, scales;  // int8 and float32, one of these a row
};

// Of x [count, columns], without gaps; steps: row_steps.h.
RowCodes codes_of_rows(const Tensor& x, float steps) {
  const RowCodes made{at::empty(x.sizes(), x.options().dtype(at::kChar)),
                      at::empty({x.size(0)}, x.options().dtype(at::kFloat))};
  launch_row_codes(storage_of(x), x.const_data_ptr(), x.size(0), x.size(1), steps,
                   made.codes.mutable_data_ptr<int8_t>(), made.scales.mutable_data_ptr<float>(),
                   c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return made;
}

Tensor rows_as_codes(const Tensor& x, const QuantizedMatrix& weight, const OptionalBias& bias, Tensor y) {
  TORCH_CHECK(weight.format.kind == CodeKind::kInt8, "[quantized_linear] the weight is ", format_name(weight.format),
              ", which is for the CPU alone: take its format without -dynamic on a GPU");
  const int64_t count = x.size(0);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const Storage storage = storage_of(x);
  const auto [codes, scales] = codes_of_rows(x, kStepsOfDynamic);
  const Tensor dense_bias = bias ? bias->contiguous() : Tensor();
  const Int8Sums product{.weight = view_of(weight),
                         .codes = codes.const_data_ptr<int8_t>(),
                         .scales = scales.const_data_ptr<float>(),
                         .bias = dense_bias.defined() ? dense_bias.const_data_ptr() : nullptr,
                         .y = y.mutable_data_ptr(),
                         .count = count};
  if (sums_by_cublas(count, weight.rows, weight.columns)) {
    const Tensor sums = at::_int_mm(codes, weight.parts[0].t());
    launch_int8_values(storage, product, sums.const_data_ptr<int32_t>(), stream);
  } else {
    launch_int8_product(storage, product, stream);
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}

Tensor row_codes_cuda(const Tensor& x) {
  Tensor y = row_codes_output(x);
  if (x.numel() == 0) return y;
  const c10::DeviceGuard guard(x.device());
  const auto [codes, scales] = codes_of_rows(x.contiguous().view({-1, x.size(-1)}), kStepsOfSymmetric);
  Tensor rows = y.view(codes.sizes());
  at::mul_out(rows, codes, scales.unsqueeze(-1));
  return y;
}

Tensor many_rows(const Tensor& x, const QuantizedMatrix& weight, const OptionalBias& bias, Tensor y) {
  for_unpacked_runs(weight, x, [&](int64_t row, const Tensor& values) {
    Tensor part = y.narrow(1, row, values.size(0));
    if (bias) {
      at::addmm_out(part, bias->narrow(0, row, values.size(0)), x, values.t());
    } else {
      at::mm_out(part, x, values.t());
    }
  });
  return y;
}

Tensor dequantize_cuda(at::TensorList parts, c10::string_view format, int64_t rows, int64_t columns, int64_t row,
                       int64_t count) {
  const QuantizedMatrix matrix = checked_matrix("dequantize_rows", parts, format, rows, columns);
  check_rows(matrix, row, count);
  const c10::DeviceGuard guard(parts[0].device());
  const Tensor values = at::empty({count, columns}, parts[0].options().dtype(at::kFloat));
  dequantize_into(matrix, row, values);
  return values;
}

Tensor rows_cuda(const Tensor& ids, at::TensorList parts, c10::string_view format, int64_t rows, int64_t columns,
                 at::ScalarType dtype) {
  const QuantizedMatrix matrix = checked_matrix("quantized_rows", parts, format, rows, columns);
  Tensor values = empty_rows(ids, matrix, dtype);
  if (ids.numel() == 0) return values;
  const c10::DeviceGuard guard(ids.device());
  const Tensor dense = ids.contiguous().to(at::kLong);
  // The host does not wait: it learns of an id that is no row at its next wait.
  at::_assert_async((dense >= 0).logical_and_(dense < rows).all(),
                    "[quantized_rows] an id is out of range, wanted 0 to " + std::to_string(rows - 1));
  launch_lookup(view_of(matrix), dense.const_data_ptr<int64_t>(), dense.numel(), storage_of(values),
                values.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return values;
}

Tensor quantized_linear_cuda(const Tensor& x, at::TensorList parts, c10::string_view format, int64_t rows,
                             int64_t columns, const OptionalBias& bias) {
  const QuantizedMatrix weight = checked_matrix("quantized_linear", parts, format, rows, columns);
  check_quantized_linear(x, weight, bias);
  const c10::DeviceGuard guard(x.device());
  auto sizes = x.sizes().vec();
  sizes.back() = rows;
  const int64_t count = c10::multiply_integers(x.sizes().slice(0, sizes.size() - 1));
  const Tensor dense = x.contiguous().view({count, columns}), y = at::empty({count, rows}, x.options());
  const auto product = weight.format.dynamic ? rows_as_codes : count <= kFewRows ? few_rows : many_rows;
  return product(dense, weight, bias, y).view(sizes);
}

// Where several runs add up, their sums are float32: cuBLAS gives the sums of half operands away.
Tensor quantized_backward_cuda(const Tensor& dy, at::TensorList parts, c10::string_view format, int64_t rows,
                               int64_t columns) {
  const QuantizedMatrix weight = checked_matrix("quantized_linear_backward", parts, format, rows, columns);
  check_quantized_backward(dy, weight);
  const c10::DeviceGuard guard(dy.device());
  auto sizes = dy.sizes().vec();
  sizes.back() = columns;
  const int64_t count = c10::multiply_integers(dy.sizes().slice(0, sizes.size() - 1));
  const Tensor dense = dy.contiguous().view({count, rows});
  if (rows == 0) return at::zeros(sizes, dy.options());
  const bool one_run = unpacked_at_once(rows, columns, dy.element_size());
  Tensor dx = at::empty({count, columns}, one_run ? dy.options() : dy.options().dtype(at::kFloat));
  for_unpacked_runs(weight, dy, [&](int64_t row, const Tensor& values) {
    const Tensor part = dense.narrow(1, row, values.size(0));
    if (one_run) {
      at::mm_out(dx, part, values);
    } else if (!is_half(dy)) {
      row == 0 ? at::mm_out(dx, part, values) : dx.addmm_(part, values);
    } else if (row == 0) {
      at::mm_out(dx, part, values, at::kFloat);
    } else {
      at::addmm_out(dx, dx, part, values, at::kFloat, 1.0, 1.0);
    }
  });
  return dx.to(dy.scalar_type()).view(sizes);
}

TORCH_LIBRARY_IMPL(limbeck, CUDA, m) {
  m.impl("dequantize_rows", &dequantize_cuda);
  m.impl("quantized_linear", &quantized_linear_cuda);
  m.impl("quantized_linear_backward", &quantized_backward_cuda);
  m.impl("quantized_rows", &rows_cuda);
  m.impl("seen_through_row_codes", &row_codes_cuda);
}

}  // namespace
}  // namespace limbeck::kernels
