// The row loops of the distances between predictions on plain pointers, without torch's headers.
#pragma once
#include "kernels/cpu/cpu_isa.h"
#include "kernels/operator/storage.h"

namespace limbeck::kernels {

struct DistanceRow {
  double log_sum, kl, squares;
};

struct DistanceOperand {
  Storage storage;
  const void* row;
};

// The rooms are overwritten.
struct DistanceLoops {
  double (*log_sum)(Storage, const void* logits, int64_t width, float* room);  // of `width` numbers
  // Rooms of 3 `width` and 2 `width` numbers; the wide one where one of the rows is float64, else null.
  DistanceRow (*distances)(const DistanceOperand& logits, const DistanceOperand& reference, double of_reference,
                           int64_t width, float* room, double* wide_room);
};

LIMBECK_LOOPS(DistanceLoops, distance_loops)

}  // namespace limbeck::kernels
