// How many pieces a whole takes where the last one need not be full: of bytes, rows, tiles and threads, for plans on
// the host and for the .cu files alike.
#pragma once
#include <cstdint>

#include "kernels/operator/formula.h"

namespace limbeck::kernels {

LIMBECK_FORMULA int64_t rounded_up_quotient(int64_t whole, int64_t piece) { return (whole + piece - 1) / piece; }

}  // namespace limbeck::kernels
