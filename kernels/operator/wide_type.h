// The one rule of what is computed inside: float32 whatever the storage, float64 beside float64 storage. Statistics,
// sums, master weights and losses have this dtype. Its like for code without torch's headers is Compute (storage.h).
#pragma once
#include <ATen/core/Tensor.h>

namespace limbeck::kernels {

inline at::ScalarType wide_type(at::ScalarType storage) { return storage == at::kDouble ? at::kDouble : at::kFloat; }
inline at::ScalarType wide_type(const at::Tensor& tensor) { return wide_type(tensor.scalar_type()); }

inline bool is_half(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16;
}

}  // namespace limbeck::kernels
