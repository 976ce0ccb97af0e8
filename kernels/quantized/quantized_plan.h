// How many rows of a quantized matrix are unpacked at a time beside a product on a GPU: as many as a scratch of 64 MiB
// holds, and a multiple of what keeps the runs of the result aligned.
#pragma once
#include <cstdint>

namespace limbeck::kernels {

// At least 1, at most `rows` (but for 0).
int64_t unpacked_rows_at_once(int64_t rows, int64_t columns, int64_t value_bytes);

// For tests: a bound other than 64 MiB; 0 brings it back.
void set_unpacked_bytes(int64_t bytes);

}  // namespace limbeck::kernels
