// The diagonal of (T - z)^-1 for tridiagonal T: exact, O(n), with exact gradients. Computed in float64 by ratios of
// neighbouring determinants (Green functions), which need no scales: nothing grows with n.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace limbeck::kernels {

// a [.., n] diagonal, b above and c below it [.., n - 1], in float32 or float64: half types, which would round z away,
// are refused and the caller casts. z [2], or [.., 2] of leading dimensions that expand to those of a: real and
// imaginary part, Im z > 0. -> [.., n, 2] in the dtype of a: real and imaginary part beside each other, as the product
// that follows wants them.
//
// causal: g_i = 1 / (a_i - z - b_{i-1} c_{i-1} g_{i-1}), the last diagonal element of the inverse of the leading
// matrix: position i sees only those up to i. Else G_ii of the whole matrix. `documents` int64 [n] or [.., n]: numbers
// of documents; neighbours of different ones are not coupled, so that each has the bits that it has alone.
//
// Work is divided along n too. On the CPU the bits depend on neither threads, nor other rows, nor vectors: each piece
// is checked against what the plain recurrence brings to its begin (resolvent_loops.h). On CUDA what comes into a piece
// is a product of 2x2 matrices (resolvent_products.h): the bits depend on a position's place in its row and on the
// row's length, so a document alone, or continued_resolvent piece by piece, may differ by roundings of float64; they
// are the same on every run, among any rows. There a z that is not finite or not above 0 makes its row NaN, where the
// CPU refuses it: the host does not wait to see it.
at::Tensor resolvent(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
                     bool causal = true, const std::optional<at::Tensor>& documents = std::nullopt);

// The causal one, piece by piece, with the bits of one call over all; without gradients. state [.., 2] float64 is g of
// the position before; b and c have n elements, the first of which couple to it (zeros where a document begins, and
// then state may be anything finite). -> ([.., n, 2], the next state)
std::tuple<at::Tensor, at::Tensor> continued_resolvent(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c,
                                                       const at::Tensor& z, const at::Tensor& state);

// For tests and debugging: throws unless |G| <= 1 / Im z and Im G > 0, which hold for both kinds wherever b_i c_i >= 0
// (a symmetric T). `slack` is relative, for the rounding of g.
void check_resolvent_bounds(const at::Tensor& g, const at::Tensor& z, double slack);

}  // namespace limbeck::kernels
