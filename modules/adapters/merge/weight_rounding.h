// What becomes of a weight computed in float32 (or float64) when it is stored in a dtype, a few rows at a time.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <string>

namespace limbeck::adapters {

inline constexpr int64_t kRoundedRowsAtATime = 256;

// |stored - exact| and |exact|, squared, over any number of rows.
struct RoundingError {
  double lost = 0, size = 0;
  double relative() const;  // infinite where something was lost of nothing
};

// visit(row, count) over all rows, kRoundedRowsAtATime at a time.
void each_row_block(int64_t rows, const std::function<void(int64_t, int64_t)>& visit);

// What `exact`, rounded to `dtype`, differs from `wanted`: both of the same shape and dtype, one or two dimensions.
RoundingError rounding_error(const at::Tensor& exact, const at::Tensor& wanted, at::ScalarType dtype,
                             const std::string& place);

// Fills the parameter of the module at `place` and says what rounding to its dtype took. NumericError for a value that
// is not finite in it; the parameter is then as it was.
RoundingError store_rounded(const at::Tensor& parameter, const at::Tensor& exact, const std::string& place);

}  // namespace limbeck::adapters
