// The run of elements whose squares square_sums() adds in float32. A tensor cut at multiples of it has the same sums in
// its parts as in one piece, which is where optimizer states are cut among ranks.
#pragma once
#include <cstdint>

namespace limbeck::kernels {

inline constexpr int64_t kSquareRun = 1024;

}  // namespace limbeck::kernels
