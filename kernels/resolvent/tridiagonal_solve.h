// Linear systems of tridiagonal matrices, and with them the resolvent's diagonal where a product of low rank is added
// to the matrix: O(n r + r^3), exact (Woodbury's identity), differentiable.
#pragma once
#include <ATen/core/Tensor.h>

namespace limbeck::kernels {

// x of (T - z) x = rhs, all float64: a [.., n], b and c [.., n - 1], z [2] or [.., 2] that expands to the leading
// dimensions of a, rhs [.., n, r, 2] -> [.., n, r, 2], complex numbers as pairs. Elimination without exchange of rows:
// exact to rounding where b_i c_i >= 0 (Im z > 0 bounds the pivots from below); elsewhere a leading matrix that is
// singular at z makes it fail, with values that are not finite. A z that is not finite or has Im z <= 0 is refused on
// the CPU; on CUDA, whose host does not wait for it, its row is NaN.
at::Tensor tridiagonal_solve(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
                             const at::Tensor& rhs);

// The diagonal of (T + u v^T - z)^-1; arguments as those of resolvent() (resolvent.h), u and v [.., n, r] in the dtype
// of a -> [.., n, 2]. Computed in float64; r is meant to be log2 n or so (dense systems of r). Not causal: v^T sees all
// positions.
at::Tensor low_rank_resolvent(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
                              const at::Tensor& u, const at::Tensor& v);

// What every backend of tridiagonal_solve does first: checks its arguments (z has the leading dimensions of a) and
// allocates x.
at::Tensor tridiagonal_solve_output(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
                                    const at::Tensor& rhs);

}  // namespace limbeck::kernels
