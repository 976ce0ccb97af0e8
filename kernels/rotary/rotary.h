// Rotary position embedding in the half-split layout (x1 = first half, x2 = second half of the rotated dimensions).
// Angles are float32 whatever the dtype of x; the rotation runs in float32 and is rounded once.
#pragma once
#include <ATen/core/Tensor.h>

#include <tuple>

namespace limbeck::kernels {

// x_bthd [B, T, H, D] (any strides with a contiguous last dimension), cos_btr and sin_btr [B or 1, T, R/2] float32, R
// <= D; dimensions R..D pass unchanged. Returns a new contiguous tensor.
at::Tensor rotary_embedding(const at::Tensor& x_bthd, const at::Tensor& cos_btr, const at::Tensor& sin_btr);

// Queries and keys, which may have fewer heads, by the same angles: the same bits as one after the other, in one
// launch.
std::tuple<at::Tensor, at::Tensor> rotary_embedding_of_both(const at::Tensor& q_bthd, const at::Tensor& k_bthd,
                                                            const at::Tensor& cos_btr, const at::Tensor& sin_btr);

}  // namespace limbeck::kernels
