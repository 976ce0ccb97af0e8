// Launchers of the CUDA kernels of the resolvent. All pointers are device pointers; nothing synchronises.
#pragma once
#include <cuda_runtime_api.h>

#include "kernels/operator/storage.h"
#include "kernels/resolvent/resolvent_formula.h"

namespace limbeck::kernels {

// As Tridiagonals are on the CPU (resolvent_loops.h), but z is in the storage. Where z is not finite or Im z <= 0,
// which the host cannot see without waiting, the row's results are NaN.
struct DeviceTridiagonals {
  const void* a;
  const void* b;
  const void* c;
  const void* z;                       // [rows, 2]
  int64_t a_row, b_row, c_row, z_row;  // elements from one row to the next
  const int64_t* documents;            // [n] with documents_row, or null
  int64_t documents_row;
  const double* state;  // [rows, 2], to which b[0] and c[0] couple, or null where the first coupling is b[0] to a[1]
  int64_t rows, n;

  template <class T>
  LIMBECK_FORMULA Complex<double> point(int64_t row) const {
    const T* pair = static_cast<const T*>(z) + row * z_row;
    return point_above({static_cast<double>(pair[0]), static_cast<double>(pair[1])});
  }
};

// One recurrence over all rows, as ResolventSweep on the CPU: Green functions, or sums of gradients (green not null).
struct DeviceSweep {
  bool from_right = false;
  const double* green = nullptr;   // [rows, n, 2], of sums
  const double* source = nullptr;  // [rows, n, 2], of sums
  double* states = nullptr;        // [rows, n, 2], or null
  void* out = nullptr;             // the states in the storage, or null
  double* last = nullptr;          // [rows, 2], the state behind each row, or null
  double* products = nullptr;      // scratch of resolvent_plan.h
  double* entries = nullptr;
};

void launch_resolvent_sweep(Storage storage, const DeviceTridiagonals& m, const DeviceSweep& sweep,
                            cudaStream_t stream);

// out [rows, n, 2] in the storage: what both Green functions give.
void launch_resolvent_diagonal(Storage storage, const DeviceTridiagonals& m, const double* left, const double* right,
                               void* out, cudaStream_t stream);

void launch_resolvent_gradient_source(Storage storage, const DeviceTridiagonals& m, const ResolventGradients& g,
                                      cudaStream_t stream);
// What stands below the sums, and grad_z [rows, 2].
void launch_resolvent_gradients(Storage storage, const DeviceTridiagonals& m, const ResolventGradients& g, void* grad_z,
                                cudaStream_t stream);

}  // namespace limbeck::kernels
