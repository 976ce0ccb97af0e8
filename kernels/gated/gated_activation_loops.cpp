#include "kernels/gated/gated_activation_loops.h"

#include "kernels/cpu/blocks.h"
#include "kernels/gated/gated_formula.h"

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

template <class T>
LIMBECK_INLINE const T* row_of(const void* base, int64_t row, int64_t stride) {
  return static_cast<const T*>(base) + row * stride;
}

template <class Activation, class T>
LIMBECK_INLINE void forward_rows(const GatedForward& a, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* gate = row_of<T>(a.gate, row, a.gate_row);
    const T* up = row_of<T>(a.up, row, a.up_row);
    T* out = static_cast<T*>(a.out) + row * a.width;
    for_blocks(a.width, [&](int64_t i, auto extent, auto) {
      store(out + i, gated_forward<Activation>(load(gate + i, extent), load(up + i, extent)), extent);
    });
  }
}

template <class Activation, class T>
LIMBECK_INLINE void backward_rows(const GatedBackward& a, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* grad = row_of<T>(a.grad, row, a.grad_row);
    const T* gate = row_of<T>(a.gate, row, a.gate_row);
    const T* up = row_of<T>(a.up, row, a.up_row);
    T* grad_gate = static_cast<T*>(a.grad_gate) + row * a.width;
    T* grad_up = static_cast<T*>(a.grad_up) + row * a.width;
    for_blocks(a.width, [&](int64_t i, auto extent, auto) {
      const auto gradients =
          gated_backward<Activation>(load(grad + i, extent), load(gate + i, extent), load(up + i, extent));
      store(grad_gate + i, gradients.gate, extent);
      store(grad_up + i, gradients.up, extent);
    });
  }
}

void forward(Storage storage, const GatedForward& a, int64_t begin, int64_t end) {
  with_storage(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if (a.kind == GatedKind::kSwiGlu) {
      forward_rows<Silu, T>(a, begin, end);
    } else {
      forward_rows<GeluTanh, T>(a, begin, end);
    }
  });
}

void backward(Storage storage, const GatedBackward& a, int64_t begin, int64_t end) {
  with_storage(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if (a.kind == GatedKind::kSwiGlu) {
      backward_rows<Silu, T>(a, begin, end);
    } else {
      backward_rows<GeluTanh, T>(a, begin, end);
    }
  });
}

}  // namespace

const GatedLoops gated_loops = {forward, backward};

}  // namespace limbeck::kernels::LIMBECK_ISA
