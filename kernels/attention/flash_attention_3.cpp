#include "kernels/attention/flash_attention_3.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>

#include "kernels/attention/flash_attention_3_library.h"
#include "kernels/attention/flash_operands.h"
#include "kernels/operator/rounded_up.h"
#include "kernels/operator/wide_type.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;

constexpr int64_t kMostDeterministicWidth = 192;

int64_t whole_blocks(int64_t n, int64_t to) { return rounded_up_quotient(n, to) * to; }

// The width that its kernels are made for.
int64_t width_of(int64_t depth) {
  for (const int64_t width : {64, 96, 128}) {
    if (depth <= width) return width;
  }
  return kMostDeterministicWidth;
}

// Sequences by cumulative lengths, or rows of one length.
struct FlashSequences {
  int64_t count, longest_q, longest_k, total_q, total_k;

  FlashSequences(const Tensor& q, const Tensor& k, const OptionalTensor& runs)
      : count(runs ? runs->numel() - 1 : q.size(0)),
        longest_q(q.size(1)),
        longest_k(k.size(1)),
        total_q(q.size(0) * q.size(1)),
        total_k(k.size(0) * k.size(1)) {}
};

// What hides keys, as it counts: a window that reaches everything is none.
struct FlashMasks {
  bool window, triangle;

  FlashMasks(const FlashSequences& s, bool causal, int64_t reach)
      : window(reach > 0 && reach < s.longest_k), triangle(causal && !window) {}
};

// Of its backward: how many queries and keys are a block.
struct FlashBlocks {
  int64_t queries, keys;

  FlashBlocks(const FlashMasks& masks, int64_t width, bool softcap) {
    queries = width <= 64 ? (masks.triangle && softcap ? 96 : 128) : 64;
    if (width == 128 && !masks.triangle && !masks.window && !softcap) queries = 80;
    keys = width <= 128 ? 128 : 96;
  }
};

// `ends`: of documents, whose rows lie flat then.
FlashAttention3Call call_of(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& ends, double scale,
                            bool causal, int64_t window, double softcap) {
  const bool flat = ends.has_value();
  const Reach reach(causal, window);
  return {.q = flash_operand(q, flat),
          .k = flash_operand(k, flat),
          .v = flash_operand(v, flat),
          .ends = ends,
          .longest_q = q.size(1),
          .longest_k = k.size(1),
          .scale = scale,
          .causal = causal,
          .left = reach.left.value_or(-1),
          .right = reach.right.value_or(-1),
          .softcap = softcap};
}

}  // namespace

bool flash_attention_3_serves(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& segments_q,
                              const OptionalTensor& segments_k, const OptionalTensor& runs, double softcap) {
  if (!uses_flash_attention_3() || !is_half(q) || v.size(3) != q.size(3)) return false;
  if (q.size(3) % kWidthMultiple != 0 || q.size(3) > kMostDeterministicWidth || q.numel() == 0) return false;
  if (!lies_in_runs(q, k, segments_q, segments_k, runs)) return false;
  return softcap == 0 || flash_attention_3_computes_softcaps(q.device());
}

std::tuple<Tensor, Tensor> flash_attention_3_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                     const OptionalTensor& segments, const OptionalTensor& runs,
                                                     double scale, bool causal, int64_t window, double softcap) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const bool flat = segments.has_value();
  auto [out, lse] =
      call_flash_attention_3_forward(call_of(q, k, v, flat ? runs : std::nullopt, scale, causal, window, softcap));
  if (!flat) return {out, lse};
  out = out.view({q.size(0), q.size(1), q.size(2), v.size(3)});
  out.masked_fill_(padding_of(*segments), 0.0);
  return {out, lse.view({q.size(2), q.size(0), q.size(1)}).transpose(0, 1)};  // it came as [H, B * T]
}

std::tuple<Tensor, Tensor, Tensor> flash_attention_3_backward(const Tensor& dout, const Tensor& q, const Tensor& k,
                                                              const Tensor& v, const Tensor& out, const Tensor& lse,
                                                              const OptionalTensor& segments,
                                                              const OptionalTensor& runs, double scale, bool causal,
                                                              int64_t window, double softcap) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const bool flat = segments.has_value();
  const Tensor seen = flat ? dout.masked_fill(padding_of(*segments), 0.0) : dout;
  // It reads the sums as if they lay dense.
  const Tensor sums = (flat ? lse.transpose(0, 1).reshape({q.size(2), -1}) : lse).contiguous();
  // Its own would lie as q, k and v do.
  const auto dense = [](const Tensor& t) { return at::empty(t.sizes(), t.options()); };
  const Tensor dq = dense(q), dk = dense(k), dv = dense(v);
  call_flash_attention_3_backward(call_of(q, k, v, flat ? runs : std::nullopt, scale, causal, window, softcap),
                                  {.dout = flash_operand(seen, flat),
                                   .out = flash_operand(out, flat),
                                   .lse = sums,
                                   .dq = flash_operand(dq, flat),
                                   .dk = flash_operand(dk, flat),
                                   .dv = flash_operand(dv, flat)});
  return {dq, dk, dv};
}

// A counter for the order of tiles; of sequences by their lengths two to four numbers each.
int64_t flash_attention_3_forward_scratch(const Tensor& q, const Tensor& k, const OptionalTensor& runs, bool causal,
                                          int64_t window) {
  const FlashSequences s(q, k, runs);
  const FlashMasks masks(s, causal && s.longest_q > 1, window);
  const bool hides = masks.triangle || masks.window;
  if (!runs) return hides ? 4 : 0;
  const int64_t numbers = 2 + (masks.window ? 0 : 1) + (hides ? 1 : 0);
  return 4 * (1 + numbers * whole_blocks(s.count, 4));
}

int64_t flash_attention_3_backward_scratch(const Tensor& q, const Tensor& k, const OptionalTensor& runs, bool causal,
                                           int64_t window, double softcap) {
  const int64_t heads = q.size(2), key_heads = k.size(2), width = width_of(q.size(3));
  const FlashSequences s(q, k, runs);
  const FlashBlocks block(FlashMasks(s, causal, window), width, softcap > 0);
  const int64_t rows = runs ? whole_blocks(s.total_q + s.count * block.queries, block.queries)
                            : s.count * whole_blocks(s.longest_q, block.queries);
  const int64_t key_rows = runs ? whole_blocks(s.total_k + s.count * block.keys, block.keys)
                                : s.count * whole_blocks(s.longest_k, block.keys);
  const int64_t turns_q = rounded_up_quotient(s.longest_q, block.queries) * s.count * heads;
  const int64_t turns_k = rounded_up_quotient(s.longest_k, block.keys) * s.count * key_heads;
  const int64_t of_queries = 4 * (heads * rows * (width + 2) + turns_q);  // sums of dq, two numbers a row, whose turn
  const int64_t of_keys = key_heads == heads ? 0 : 4 * 2 * (key_heads * key_rows * width + turns_k);
  const int64_t unpadded = runs ? q.numel() * q.element_size() : 0;
  return of_queries + of_keys + unpadded;
}

}  // namespace limbeck::kernels
