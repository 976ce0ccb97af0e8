#include "kernels/gated/gated_activation_cuda.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "kernels/gated/gated_activation_operators.h"
#include "kernels/operator/checks.h"

namespace limbeck::kernels {
namespace {

template <GatedKind kind>
at::Tensor forward(const at::Tensor& gate, const at::Tensor& up) {
  const c10::cuda::CUDAGuard guard(gate.device());
  const at::Tensor out = gated_output(kind, gate, up);
  const Rows gate_rows(gate), up_rows(up);
  const GatedForward args{kind,           gate_rows.data,         gate_rows.stride, up_rows.data,
                          up_rows.stride, out.mutable_data_ptr(), gate_rows.width};
  launch_gated_forward(storage_of(gate), args, gate_rows.count, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

template <GatedKind kind>
std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& grad, const at::Tensor& gate, const at::Tensor& up) {
  const c10::cuda::CUDAGuard guard(gate.device());
  const auto [grad_gate, grad_up] = gated_gradients(kind, grad, gate, up);
  const Rows grad_rows(grad), gate_rows(gate), up_rows(up);
  const GatedBackward args{kind,
                           grad_rows.data,
                           grad_rows.stride,
                           gate_rows.data,
                           gate_rows.stride,
                           up_rows.data,
                           up_rows.stride,
                           grad_gate.mutable_data_ptr(),
                           grad_up.mutable_data_ptr(),
                           gate_rows.width};
  launch_gated_backward(storage_of(gate), args, gate_rows.count, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {grad_gate, grad_up};
}

TORCH_LIBRARY_IMPL(limbeck, CUDA, m) {
  m.impl("swiglu", forward<GatedKind::kSwiGlu>);
  m.impl("swiglu_backward", backward<GatedKind::kSwiGlu>);
  m.impl("geglu_tanh", forward<GatedKind::kGeGluTanh>);
  m.impl("geglu_tanh_backward", backward<GatedKind::kGeGluTanh>);
}

}  // namespace
}  // namespace limbeck::kernels
