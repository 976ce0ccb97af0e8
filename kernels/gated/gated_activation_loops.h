// The row loops of act(gate) * up on plain pointers, without torch's headers; CUDA launchers take the same structs.
#pragma once
#include "kernels/cpu/cpu_isa.h"
#include "kernels/operator/storage.h"

namespace limbeck::kernels {

enum class GatedKind : int { kSwiGlu, kGeGluTanh };

// gate, up [rows, width] with row strides, out contiguous.
struct GatedForward {
  GatedKind kind;
  const void* gate;
  int64_t gate_row;
  const void* up;
  int64_t up_row;
  void* out;
  int64_t width;
};

// grad_gate and grad_up contiguous.
struct GatedBackward {
  GatedKind kind;
  const void* grad;
  int64_t grad_row;
  const void* gate;
  int64_t gate_row;
  const void* up;
  int64_t up_row;
  void* grad_gate;
  void* grad_up;
  int64_t width;
};

struct GatedLoops {
  void (*forward)(Storage, const GatedForward&, int64_t row_begin, int64_t row_end);
  void (*backward)(Storage, const GatedBackward&, int64_t row_begin, int64_t row_end);
};

LIMBECK_LOOPS(GatedLoops, gated_loops)

}  // namespace limbeck::kernels
