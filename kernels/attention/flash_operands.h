// What every version of flash attention is handed: documents end to end, what a query reaches, padding.
#pragma once
#include <ATen/ops/eq.h>

#include <optional>

#include "kernels/attention/attention_operands.h"

namespace limbeck::kernels {

inline constexpr int64_t kWidthMultiple = 8;  // of a head

// As flash attention counts: keys to the left and to the right beside one's own; none = all.
struct Reach {
  std::optional<int64_t> left, right;

  Reach(bool causal, int64_t window) {
    if (window > 0) left = window - 1;
    if (window > 0 && !causal) right = window - 1;
    if (causal) right = 0;
  }
};

// No segments, or the same ones for queries and keys, whose runs were counted.
inline bool lies_in_runs(const at::Tensor& q, const at::Tensor& k, const OptionalTensor& segments_q,
                         const OptionalTensor& segments_k, const OptionalTensor& runs) {
  return !segments_q ||
         (runs && q.size(1) == k.size(1) && segments_q->const_data_ptr() == segments_k->const_data_ptr());
}

// [B, T, H, D] -> [B * T, H, D] for documents; rows as they are otherwise. The last dimension lies dense.
inline at::Tensor flash_operand(const at::Tensor& t, bool flat) {
  const at::Tensor dense = t.stride(-1) == 1 ? t : t.contiguous();
  return flat ? dense.flatten(0, 1) : dense;
}

inline at::Tensor padding_of(const at::Tensor& segments) { return segments.eq(0).unsqueeze(2).unsqueeze(3); }

}  // namespace limbeck::kernels
