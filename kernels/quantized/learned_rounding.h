// Rounding of a frozen matrix W [rows, columns] that can be learned (SignRound): an offset v for each value moves the
// point where it goes up instead of down, and each scale comes from a range of its own in place of the largest values
// that it stands for. Formats, parts and values are those of quantized_matrix.h; with v = 0 and the range of W the
// parts are those of quantize(), to the bit.
//   range [ends, scales]: where a format has zeros, least (<= 0) and most (>= 0) of each group; else a magnitude.
//   int8, int4  code = round(w / scale + v) + zero, within the codes
//   nf4         the place of w / scale among the levels, of which level i is at i, and linear between two of them; code
//               = the nearest to that place + v. |v| <= 0.5 leaves a value one of its two neighbours.
// Gradients of v and the range pass straight through each rounding (of codes, zeros, and scales to their dtype); a
// value that is held at the end of the codes gives v none. W has none.
#pragma once
#include "kernels/quantized/quantized_matrix.h"

namespace limbeck::kernels {

// Of a finite matrix on the CPU: float32 [ends, scales], the scales in the order of their part.
at::Tensor range_of(const at::Tensor& weight, QuantizedFormat format);

// A float32 matrix, as its offsets [rows, columns] and its range are; scales of int8 and int4 in the dtype `scales`.
struct LearnedRounding {
  at::Tensor weight, offset, range;
  QuantizedFormat format;
  at::ScalarType scales = at::kFloat;
};
QuantizedMatrix quantize_learned(const LearnedRounding& rounding);
// W', float32 [rows, columns]: what the codes of quantize_learned() stand for, to the bit; differentiable.
at::Tensor learned_values(const LearnedRounding& rounding);
// W moved no more than it takes to be rounded to the codes of `matrix` by this range without offsets, with a little
// room to the edge. Where the codes are those of rounding to nearest it is W.
at::Tensor moved_to_codes(const at::Tensor& weight, const at::Tensor& range, const QuantizedMatrix& matrix);

}  // namespace limbeck::kernels
