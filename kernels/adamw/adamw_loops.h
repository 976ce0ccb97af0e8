// The element loops of the optimizer's operators on plain pointers, without torch's headers; CUDA launchers take the
// same structs. Storage names the dtype; weights and moments are float32, or float64 beside a float64 gradient.
#pragma once
#include "kernels/adamw/adamw_formula.h"
#include "kernels/adamw/square_sums_run.h"
#include "kernels/cpu/cpu_isa.h"
#include "kernels/operator/storage.h"

namespace limbeck::kernels {

// What is the same for all tensors of an update.
struct AdamWArguments {
  AdamWFactors factors;
  Storage gradient_storage;
  Storage narrow_storage;  // of the half parameters
};

struct AdamWTensor {
  const void* gradient;
  void* weight;  // the master, or the parameter itself
  void* first;
  void* second;
  void* narrow;  // half parameter that becomes the rounded weight, or null
  int64_t count;
};

struct SquaredTensor {
  const void* x;
  int64_t count;
};

struct AdamWLoops {
  void (*step)(const AdamWArguments&, const AdamWTensor&, int64_t begin, int64_t end);
  // totals[run] = sum of squares of elements [run * kSquareRun, ...) below `count`
  void (*square_sums)(Storage, const void* x, int64_t count, double* totals, int64_t run_begin, int64_t run_end);
  void (*accumulate)(Storage, const void* x, void* sum, int64_t begin, int64_t end);
};

LIMBECK_LOOPS(AdamWLoops, adamw_loops)

}  // namespace limbeck::kernels
