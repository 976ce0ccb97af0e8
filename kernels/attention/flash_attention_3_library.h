// The library that registers FlashAttention 3: how it comes into the process, and how its two operators are called.
#pragma once
#include "kernels/attention/attention_operands.h"

namespace limbeck::kernels {

// q, k, v [B, L, H, D], or [total, H, D] with `ends`, where the sequences begin and the last one ends (int32).
struct FlashAttention3Call {
  at::Tensor q, k, v;
  OptionalTensor ends;
  int64_t longest_q, longest_k;
  double scale;
  bool causal;
  int64_t left, right;  // keys that are seen beside one's own, -1: all
  double softcap;
};

// dq, dk, dv are written.
struct FlashAttention3Gradients {
  at::Tensor dout, out, lse, dq, dk, dv;
};

// Asked of the library the first time that a GPU wants one. Where nobody could be asked, as in a plan before the run:
// no.
bool flash_attention_3_computes_softcaps(c10::Device device);

std::tuple<at::Tensor, at::Tensor> call_flash_attention_3_forward(const FlashAttention3Call& call);  // out, lse
void call_flash_attention_3_backward(const FlashAttention3Call& call, const FlashAttention3Gradients& gradients);

}  // namespace limbeck::kernels
