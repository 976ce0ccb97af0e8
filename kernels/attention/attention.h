// Softmax attention with grouped queries, causal and sliding masks, score softcap and segments, without a T x S mask
// tensor. Scores, softmax and accumulation are float32; the result is rounded once. Saves q, k, v, out and one
// float32 log-sum-exp a row; the Meta kernel saves the same.
#pragma once
#include <ATen/core/Tensor.h>
#include <cstdint>
#include <optional>

namespace limbeck::kernels {

struct AttentionOptions {
  double scale = 1.0;    // scores = scale * q k^T
  bool causal = true;    // query i (at absolute index S - T + i) sees keys with index <= its own
  int64_t window = 0;    // > 0: sees only keys with own index - key index < window (both sides when not causal)
  double softcap = 0.0;  // > 0: scores = softcap * tanh(scores / softcap)
};

// q [B, T, Hq, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv], Hq a multiple of Hkv, S >= T -> [B, T, Hq, Dv].
// segments_q [B, T], segments_k [B, S] int32: a query sees keys of its own segment alone; segment 0 is padding, sees
// nothing and gives zeros (and zero gradients). None: one segment.
// runs [R + 1] int32, where segments are the same for q and k and each segment of a row (padding too) is one run: where
// the runs of all rows, end to end, begin and the last of them ends; empty runs may follow. With it a GPU reads the
// documents one by one (FlashAttention); the result is the same without.
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const std::optional<at::Tensor>& segments_q, const std::optional<at::Tensor>& segments_k,
                     const AttentionOptions& options, const std::optional<at::Tensor>& runs = std::nullopt);

// Whether `runs` are read where `like` is: on a GPU, and in a plan for one that computes by FlashAttention 3. (In place
// of FlashAttention 2 a plan has the composition, which reads segments and takes more.)
bool reads_runs(const at::Tensor& like);

}  // namespace limbeck::kernels
