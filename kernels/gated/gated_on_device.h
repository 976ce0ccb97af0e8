// The gated activations on any device: a Device says how rows run there, by forward and backward(Storage, arguments,
// rows).
#pragma once
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "kernels/gated/gated_activation_operators.h"
#include "kernels/operator/checks.h"

namespace limbeck::kernels {

template <class Device>
struct GatedOn {
  template <GatedKind kind>
  static at::Tensor forward(const at::Tensor& gate, const at::Tensor& up) {
    const c10::DeviceGuard guard(gate.device());
    const at::Tensor out = gated_output(kind, gate, up);
    const Rows gate_rows(gate), up_rows(up);
    const GatedForward args{kind,           gate_rows.data,         gate_rows.stride, up_rows.data,
                            up_rows.stride, out.mutable_data_ptr(), gate_rows.width};
    Device::forward(storage_of(gate), args, gate_rows.count);
    return out;
  }

  template <GatedKind kind>
  static std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& grad, const at::Tensor& gate,
                                                     const at::Tensor& up) {
    const c10::DeviceGuard guard(gate.device());
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
    Device::backward(storage_of(gate), args, gate_rows.count);
    return {grad_gate, grad_up};
  }

  static void add_to(torch::Library& m) {
    m.impl("swiglu", forward<GatedKind::kSwiGlu>);
    m.impl("swiglu_backward", backward<GatedKind::kSwiGlu>);
    m.impl("geglu_tanh", forward<GatedKind::kGeGluTanh>);
    m.impl("geglu_tanh_backward", backward<GatedKind::kGeGluTanh>);
  }
};

}  // namespace limbeck::kernels
