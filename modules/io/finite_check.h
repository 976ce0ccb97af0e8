// Finds NaN and infinities in weights at memory speed. Works on bits (all exponent bits set), so that every floating
// storage type, float8 included, takes the same path and signalling NaNs raise nothing.
#pragma once
#include <ATen/core/Tensor.h>
#include <cstdint>
#include <optional>

namespace limbeck::io {

// Row-major index of the first element that is NaN or infinite. CPU tensors; integer and bool types hold none.
std::optional<int64_t> first_nonfinite(const at::Tensor& tensor);
// The same on plain memory of `count` elements of `type`.
std::optional<int64_t> first_nonfinite(const void* data, int64_t count, at::ScalarType type);

}  // namespace limbeck::io
