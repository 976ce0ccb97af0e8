// FlashAttention by ATen's own operators (half types on CUDA alone), where it computes what limbeck::attention says.
// ATen's autograd of them is not used: it would keep copies of its own, and its backward adds up in any order.
#pragma once
#include "kernels/attention/attention_operands.h"

namespace limbeck::kernels {

// What flash attention has no path for: other dtypes and head widths, a softcap, values of another width than keys,
// segments whose runs nobody counted, and segments beside a cache.
bool flash_attention_serves(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const OptionalTensor& segments_q, const OptionalTensor& segments_k,
                            const OptionalTensor& runs, double softcap);

std::tuple<at::Tensor, at::Tensor> flash_attention_forward(const at::Tensor& q, const at::Tensor& k,
                                                           const at::Tensor& v, const OptionalTensor& segments,
                                                           const OptionalTensor& runs, double scale, bool causal,
                                                           int64_t window);

// The same bits every time.
std::tuple<at::Tensor, at::Tensor, at::Tensor> flash_attention_backward(const at::Tensor& dout, const at::Tensor& q,
                                                                        const at::Tensor& k, const at::Tensor& v,
                                                                        const at::Tensor& out, const at::Tensor& lse,
                                                                        const OptionalTensor& segments,
                                                                        const OptionalTensor& runs, double scale,
                                                                        bool causal, int64_t window);

// What they hold beside their results. Of the backward as PyTorch 2.11's source has it (never seen on a GPU): float32
// sums of dq, several of them for a fixed order, a number a row, and gradients of keys and values for each query head.
int64_t flash_forward_scratch(const at::Tensor& q, bool documents);
int64_t flash_backward_scratch(const at::Tensor& q, const at::Tensor& k, bool documents);

}  // namespace limbeck::kernels
