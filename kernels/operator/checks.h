// What every operator asks of its arguments before it touches them. A message says which operator and argument, what
// came and what was wanted; dtypes are never promoted and nothing is moved between devices.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

#include "kernels/operator/storage.h"
#include "kernels/operator/wide_type.h"

namespace limbeck::kernels {

// "bfloat16 [2, 3] on cpu"
std::string described(const at::Tensor& tensor);

// A strided floating tensor (float32, bfloat16, float16 or float64) on a device that this process has operators for.
void check_floating(const char* op, const char* name, const at::Tensor& tensor);

// Dtype and device of `tensor` are those of `like`.
void check_matches(const char* op, const char* name, const at::Tensor& tensor, const char* like_name,
                   const at::Tensor& like);

// The shape of `tensor` is that of `like`.
void check_same_shape(const char* op, const char* name, const at::Tensor& tensor, const char* like_name,
                      const at::Tensor& like);

Storage storage_of(const at::Tensor& tensor);

// `tensor` as [count, width] rows at a fixed distance, with adjacent elements; copied only where its strides forbid
// that.
struct Rows {
  explicit Rows(const at::Tensor& tensor);

  at::Tensor tensor;  // keeps the data alive
  const void* data;
  int64_t count;
  int64_t width;
  int64_t stride;  // elements from one row to the next
};

}  // namespace limbeck::kernels
