#include "kernels/grouped_linear/grouped_linear_cuda.h"

#include <ATen/ops/_grouped_mm.h>
#include <ATen/ops/diff.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "kernels/grouped_linear/grouped_linear_operators.h"
#include "kernels/operator/checks.h"

namespace limbeck::kernels {
namespace {

constexpr int64_t kEven = 8;  // values of a half type in 16 bytes

// ATen's product is one kernel, which asks the host for nothing, in bfloat16 on GPUs of these two generations; all else
// it multiplies group by group, and has the host wait for their ends.
bool aten_takes(const at::Tensor& operand) {
  if (operand.scalar_type() != at::kBFloat16) return false;
  int major = 0;
  TORCH_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, operand.get_device()) == cudaSuccess,
              "no GPU ", operand.get_device());
  return major == 9 || major == 10;
}

bool begins_even(const at::Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0; }

bool has_even_lines(const at::Tensor& rows) {
  return rows.size(0) > 0 && rows.size(1) > 0 && rows.stride(1) == 1 && rows.size(1) % kEven == 0 &&
         rows.stride(0) % kEven == 0 && rows.stride(0) >= rows.size(1) && begins_even(rows);
}

bool has_even_matrices(const at::Tensor& weight) {
  const int64_t adjacent = weight.stride(2) == 1 ? 2 : 1, other = 3 - adjacent;
  return weight.size(1) % kEven == 0 && weight.size(2) % kEven == 0 && weight.stride(adjacent) == 1 &&
         weight.stride(other) % kEven == 0 && weight.stride(other) >= weight.size(adjacent) &&
         weight.stride(0) % kEven == 0 && begins_even(weight);
}

int counted(const char* op, const char* what, int64_t count, int64_t most = 1 << 29) {
  TORCH_CHECK(count <= most, "[", op, "] ", count, " ", what, ", wanted at most ", most, " on a GPU");
  return static_cast<int>(count);
}

Lines lines_of(const char* op, const void* data, int64_t stride) {
  return {data, counted(op, "elements between rows", stride)};
}

Groups groups_of(const char* op, const at::Tensor& ends, int64_t rows) {
  return {ends.const_data_ptr<int32_t>(), counted(op, "groups", ends.size(0), 65535), counted(op, "rows", rows)};
}

at::Tensor grouped_linear_on_cuda(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& ends) {
  const char* op = "grouped_linear";
  const c10::cuda::CUDAGuard guard(rows.device());
  check_grouped_linear(rows, weight, ends);
  const at::Tensor dense_ends = ends.contiguous();
  if (aten_takes(rows) && has_even_lines(rows) && has_even_matrices(weight)) {
    return at::_grouped_mm(rows, weight.transpose(1, 2), dense_ends);
  }
  const at::Tensor out = grouped_linear_output(rows, weight, ends);
  const bool transposed = weight.stride(2) != 1 && weight.stride(1) == 1;
  const at::Tensor matrices = transposed || weight.stride(2) == 1 ? weight : weight.contiguous();
  const Rows lines(rows);
  GroupedLinearWork work = {};
  work.rows = lines_of(op, lines.data, lines.stride);
  work.weight = lines_of(op, matrices.const_data_ptr(), matrices.stride(transposed ? 2 : 1));
  work.group_stride = matrices.stride(0);
  work.transposed = transposed;
  work.out = out.mutable_data_ptr();
  work.groups = groups_of(op, dense_ends, rows.size(0));
  work.width = counted(op, "columns", weight.size(1), 1 << 21);
  work.depth = counted(op, "columns", rows.size(1));
  launch_grouped_linear(storage_of(rows), work, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

// What ATen leaves for a group without rows is not promised to be zero.
at::Tensor outer_of_aten(const at::Tensor& left, const at::Tensor& right, const at::Tensor& ends) {
  at::Tensor out = at::_grouped_mm(left.t(), right, ends);
  const at::Tensor counts = at::diff(ends, 1, 0, at::zeros({1}, ends.options()));
  return out.masked_fill_(counts.eq(0).view({-1, 1, 1}), 0.0);
}

at::Tensor grouped_outer_on_cuda(const at::Tensor& left, const at::Tensor& right, const at::Tensor& ends) {
  const char* op = "grouped_outer";
  const c10::cuda::CUDAGuard guard(left.device());
  check_grouped_outer(left, right, ends);
  const at::Tensor dense_ends = ends.contiguous();
  if (aten_takes(left) && has_even_lines(left) && has_even_lines(right)) {
    return outer_of_aten(left, right, dense_ends);
  }
  const at::Tensor out = grouped_outer_output(left, right, ends);
  const Rows lines(left), columns(right);
  GroupedOuterWork work = {};
  work.left = lines_of(op, lines.data, lines.stride);
  work.right = lines_of(op, columns.data, columns.stride);
  work.out = out.mutable_data_ptr();
  work.groups = groups_of(op, dense_ends, left.size(0));
  work.height = counted(op, "columns", left.size(1), 1 << 20);
  work.width = counted(op, "columns", right.size(1), 1 << 20);
  launch_grouped_outer(storage_of(left), work, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

TORCH_LIBRARY_IMPL(limbeck, CUDA, m) {
  m.impl("grouped_linear", grouped_linear_on_cuda);
  m.impl("grouped_outer", grouped_outer_on_cuda);
}

}  // namespace
}  // namespace limbeck::kernels
