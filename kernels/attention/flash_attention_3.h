// FlashAttention 3, which computes by Hopper's own instructions (compute capability 9.0), where the user names a
// library that registers its operators, flash_attn_3::fwd and flash_attn_3::bwd: Dao-AILab's wheels have one, and so
// has xformers'. Which attention computes is a property of the process, as the library is.
#pragma once
#include <string>

#include "kernels/attention/attention_operands.h"

namespace limbeck::kernels {

// Loads the library and holds its operators against the schemas by which they are called here. From now on they compute
// attention on CUDA where they serve, and plans for CUDA count what they hold. "": as if none had been named.
// c10::Error says what is wrong with the library.
void use_flash_attention_3(const std::string& library);
bool uses_flash_attention_3();

// Beside what FlashAttention 2 computes softcaps too, where the library was built with them; but its gradients are the
// same bits every time only up to a head width of 192.
bool flash_attention_3_serves(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const OptionalTensor& segments_q, const OptionalTensor& segments_k,
                              const OptionalTensor& runs, double softcap);

std::tuple<at::Tensor, at::Tensor> flash_attention_3_forward(const at::Tensor& q, const at::Tensor& k,
                                                             const at::Tensor& v, const OptionalTensor& segments,
                                                             const OptionalTensor& runs, double scale, bool causal,
                                                             int64_t window, double softcap);

// The same bits every time.
std::tuple<at::Tensor, at::Tensor, at::Tensor> flash_attention_3_backward(const at::Tensor& dout, const at::Tensor& q,
                                                                          const at::Tensor& k, const at::Tensor& v,
                                                                          const at::Tensor& out, const at::Tensor& lse,
                                                                          const OptionalTensor& segments,
                                                                          const OptionalTensor& runs, double scale,
                                                                          bool causal, int64_t window, double softcap);

// What they hold beside their results, as their source has it (hopper/flash_api_stable.cpp of
// Dao-AILab/flash-attention, read on 2026-11-29; never seen on a GPU). Of `runs` only the number.
int64_t flash_attention_3_forward_scratch(const at::Tensor& q, const at::Tensor& k, const OptionalTensor& runs,
                                          bool causal, int64_t window);
int64_t flash_attention_3_backward_scratch(const at::Tensor& q, const at::Tensor& k, const OptionalTensor& runs,
                                           bool causal, int64_t window, double softcap);

}  // namespace limbeck::kernels
