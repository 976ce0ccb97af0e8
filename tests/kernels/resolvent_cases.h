// Tridiagonal matrices to try the resolvent on, and what dense inverses of theirs give.
#pragma once
#include <ATen/ATen.h>

#include "support/operator_checks.h"

namespace limbeck::test {

// a, b, c, z: off-diagonals that differ and where neither's sign is fixed, or those of a symmetric matrix.
inline Tensors matrices(at::IntArrayRef leading, int64_t n, at::ScalarType dtype, uint64_t seed, double height = 0.5,
                        bool symmetric = false) {
  const auto shaped = [&](int64_t last) {
    std::vector<int64_t> shape = leading.vec();
    shape.push_back(last);
    return shape;
  };
  const at::Tensor b = random_tensor(shaped(n - 1), at::kDouble, seed + 1) * 0.7 + 0.8;
  const at::Tensor c = symmetric ? b : random_tensor(shaped(n - 1), at::kDouble, seed + 2) * 0.7 + 0.8;
  Tensors all{random_tensor(shaped(n), at::kDouble, seed) * 0.8 - 1.0, b, c, at::tensor({0.3, height}, at::kDouble)};
  for (at::Tensor& one : all) one = one.to(dtype);
  return all;
}

// T - z of a, b, c, z: all its complex elements.
inline at::Tensor dense_system(const Tensors& in) {
  const at::Tensor b = in[1].to(at::kDouble), c = in[2].to(at::kDouble);
  at::Tensor matrix = at::diag_embed(in[0].to(at::kDouble));
  // Of one position the others are empty, with gradients of no elements.
  matrix = in[0].size(-1) > 1 ? matrix + at::diag_embed(b, 1) + at::diag_embed(c, -1) : matrix + (b.sum() + c.sum());
  const at::Tensor z = at::view_as_complex(in[3].to(at::kDouble).contiguous()).unsqueeze(-1).unsqueeze(-1);
  return matrix - at::eye(in[0].size(-1), at::kComplexDouble) * z;
}

// The diagonal of the inverse of the whole matrix, by a dense inverse.
inline at::Tensor dense_reference(const Tensors& in) {
  return at::view_as_real(at::linalg_inv(dense_system(in)).diagonal(0, -2, -1));
}

// Each position by the inverse of the matrix that ends with it.
inline at::Tensor leading_reference(const Tensors& in) {
  Tensors last;
  for (int64_t n = 1; n <= in[0].size(-1); ++n) {
    const Tensors part{in[0].narrow(-1, 0, n), in[1].narrow(-1, 0, n - 1), in[2].narrow(-1, 0, n - 1), in[3]};
    last.push_back(dense_reference(part).select(-2, n - 1));
  }
  return at::stack(last, -2);
}

// The largest error, relative to numbers above 1.
inline double worst(const at::Tensor& ours, const at::Tensor& wanted) {
  return ((ours.to(at::kDouble) - wanted).abs() / wanted.abs().clamp_min(1.0)).max().item<double>();
}

}  // namespace limbeck::test
