#include "modules/adapters/merge/weight_rounding.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "modules/errors.h"
#include "modules/precision/casts.h"
#include "modules/precision/precision.h"

namespace limbeck::adapters {
namespace {

double squared(const at::Tensor& x) {
  const double norm = x.norm().item<double>();
  return norm * norm;
}

at::Tensor rounded(const at::Tensor& rows, at::ScalarType dtype, const std::string& place) {
  const at::ScalarType wide = rows.scalar_type();
  return precision::cast(precision::cast(rows, wide, dtype, place + " (rounding)"), dtype, wide, place + " (rounded)");
}

}  // namespace

double RoundingError::relative() const {
  if (lost == 0) return 0;
  return size > 0 ? std::sqrt(lost / size) : std::numeric_limits<double>::infinity();
}

void each_row_block(int64_t rows, const std::function<void(int64_t, int64_t)>& visit) {
  for (int64_t row = 0; row < rows; row += kRoundedRowsAtATime) visit(row, std::min(kRoundedRowsAtATime, rows - row));
}

RoundingError rounding_error(const at::Tensor& exact, const at::Tensor& wanted, at::ScalarType dtype,
                             const std::string& place) {
  RoundingError error;
  each_row_block(exact.size(0), [&](int64_t row, int64_t count) {
    const at::Tensor want = wanted.narrow(0, row, count);
    error.lost += squared(rounded(exact.narrow(0, row, count), dtype, place) - want);
    error.size += squared(want);
  });
  return error;
}

RoundingError store_rounded(const at::Tensor& parameter, const at::Tensor& exact, const std::string& place) {
  at::Tensor stored = parameter.detach();
  const RoundingError error = rounding_error(exact, exact, stored.scalar_type(), place);
  if (!std::isfinite(error.lost) || !std::isfinite(error.size)) {
    throw NumericError(
        fmt::format("[{}] the weight would not be finite in {} (the largest of its values is {:g}): say a wider dtype "
                    "(--dtype=bfloat16 or float32), or look for NaN in model and adapter",
                    place, precision::dtype_name(stored.scalar_type()), exact.abs().max().item<double>()));
  }
  precision::cast_into(stored, exact);
  return error;
}

}  // namespace limbeck::adapters
