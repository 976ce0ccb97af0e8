// Rows of activations seen as 8-bit codes: in the place of a row x stands scale code, with scale = max |x| / 127 and
// code = round(x / scale) to nearest even, so that no value is further away than half a scale (row_steps.h has why 127,
// and not int8-dynamic's 127.5). A row that is not finite gives NaN. The gradient goes straight through. The bits of a
// row depend on nothing but the row: not on other rows, threads, the instruction set or the device.
#pragma once
#include <ATen/core/Tensor.h>

namespace limbeck::kernels {

// x [.., width] float32 -> the same shape, without gaps.
at::Tensor seen_through_row_codes(const at::Tensor& x);
// The same by one scale for all, bound / 127, where a row is too short to have one of its own: code = round(x 127 /
// bound), and what is beyond the bound has the last code on its side.
at::Tensor seen_in_steps(const at::Tensor& x, double bound);

// What every backend of it does first: checks x and allocates the result.
at::Tensor row_codes_output(const at::Tensor& x);

}  // namespace limbeck::kernels
