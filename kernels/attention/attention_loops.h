// The loops of attention on plain pointers, without torch's headers. T is how elements are stored; everything between
// loading and storing is Compute<T>.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/operator/storage.h"

namespace limbeck::kernels {

// [B, L, H, D] with contiguous D.
template <class T>
struct HeadView {
  T* data = nullptr;
  int64_t batch_stride = 0, step_stride = 0, head_stride = 0;
  LIMBECK_INLINE T* at(int64_t b, int64_t step, int64_t head) const {
    return data + b * batch_stride + step * step_stride + head * head_stride;
  }
};

struct AttentionShape {
  int64_t batch, queries, keys, query_heads, key_heads, depth, value_depth;
  double scale, softcap;
  bool causal;
  int64_t window;
  const int32_t* segments_q;  // [B, T] contiguous, or nullptr
  const int32_t* segments_k;  // [B, S]

  LIMBECK_INLINE int64_t group() const { return query_heads / key_heads; }
  // Keys that query i sees, segments aside: [first_key, last_key).
  LIMBECK_INLINE int64_t first_key(int64_t i) const {
    const int64_t first = keys - queries + i - window + 1;
    return window > 0 && first > 0 ? first : 0;
  }
  LIMBECK_INLINE int64_t last_key(int64_t i) const {
    const int64_t own = keys - queries + i;
    const int64_t last = causal ? own + 1 : window > 0 ? own + window : keys;
    return last < keys ? last : keys;
  }
};

template <class T>
struct AttentionForward {
  AttentionShape shape;
  HeadView<const T> q, k, v;
  HeadView<T> out;
  Compute<T>* lse;                 // [B, Hq, T]; -inf where a query sees nothing
  void* (*scratch)(size_t bytes);  // of the calling thread, aligned to 64
};

template <class T>
struct AttentionBackward {
  AttentionShape shape;
  HeadView<const T> q, k, v, out, dout;
  const Compute<T>* lse;
  HeadView<T> dq, dk, dv;
  void* (*scratch)(size_t bytes);
};

template <class T>
struct AttentionRuns {
  // Queries [q0, q1) of all query heads of one key head.
  void (*forward)(const AttentionForward<T>&, int64_t batch, int64_t head, int64_t q0, int64_t q1);
  void (*backward)(const AttentionBackward<T>&, int64_t batch, int64_t head);
};

struct AttentionLoops : AttentionRuns<float>,
                        AttentionRuns<BFloat16Bits>,
                        AttentionRuns<Float16Bits>,
                        AttentionRuns<double> {};

LIMBECK_LOOPS(AttentionLoops, attention_loops)

}  // namespace limbeck::kernels
