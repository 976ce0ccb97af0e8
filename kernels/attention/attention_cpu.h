// The CPU bodies of attention as plain pointers: what attention_cpu.cpp prepares and attention.inc computes.
#pragma once
#include <cstdint>
#include <type_traits>

namespace limbeck::kernels {

// [B, L, H, D] with contiguous D.
template <class T>
struct HeadView {
  T* data = nullptr;
  int64_t batch_stride = 0, step_stride = 0, head_stride = 0;
  T* at(int64_t b, int64_t step, int64_t head) const {
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

  int64_t group() const { return query_heads / key_heads; }
  // Keys that query i sees, segments aside: [first_key, last_key).
  int64_t first_key(int64_t i) const {
    const int64_t first = keys - queries + i - window + 1;
    return window > 0 && first > 0 ? first : 0;
  }
  int64_t last_key(int64_t i) const {
    const int64_t own = keys - queries + i;
    const int64_t last = causal ? own + 1 : window > 0 ? own + window : keys;
    return last < keys ? last : keys;
  }
};

// Everything between loading and storing is in this type.
template <class T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
struct AttentionForward {
  AttentionShape shape;
  HeadView<const T> q, k, v;
  HeadView<T> out;
  Wide<T>* lse;  // [B, Hq, T]; -inf where a query sees nothing
};

template <class T>
struct AttentionBackward {
  AttentionShape shape;
  HeadView<const T> q, k, v, out, dout;
  const Wide<T>* lse;
  HeadView<T> dq, dk, dv;
};

}  // namespace limbeck::kernels
