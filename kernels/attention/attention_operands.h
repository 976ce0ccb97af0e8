// What the bodies of attention (CPU, CUDA, Meta) share: the checks, done once, and the signatures of the operators
//   limbeck::attention          -> out                   with autograd
//   limbeck::attention_forward  -> out, lse [B, Hq, T]   (float32; float64 for float64 inputs)
//   limbeck::attention_backward -> dq, dk, dv
// `runs`: for bodies that read documents one by one, see attention.h; others leave it.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace limbeck::kernels {

using OptionalTensor = std::optional<at::Tensor>;

void check_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const OptionalTensor& segments_q,
                     const OptionalTensor& segments_k, int64_t window, double softcap);

// The CUDA bodies: a composition of ATen operators over runs of queries. They run on any device (tests do, on the CPU).
std::tuple<at::Tensor, at::Tensor> composed_attention_forward(const at::Tensor& q, const at::Tensor& k,
                                                              const at::Tensor& v, const OptionalTensor& segments_q,
                                                              const OptionalTensor& segments_k, double scale,
                                                              bool causal, int64_t window, double softcap);
std::tuple<at::Tensor, at::Tensor, at::Tensor> composed_attention_backward(
    const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& out,
    const at::Tensor& lse, const OptionalTensor& segments_q, const OptionalTensor& segments_k, double scale,
    bool causal, int64_t window, double softcap);

}  // namespace limbeck::kernels
