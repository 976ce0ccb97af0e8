// The rotary embedding on any device: Device::rotate(const RotaryWork&) says how positions run there.
#pragma once
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "kernels/rotary/rotary_operators.h"

namespace limbeck::kernels {

template <class Device>
struct RotaryOn {
  static at::Tensor forward(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
    return rotate("rotary_embedding", x, cos, sin, false);
  }
  static at::Tensor backward(const at::Tensor& grad, const at::Tensor& cos, const at::Tensor& sin) {
    return rotate("rotary_embedding_backward", grad, cos, sin, true);
  }

  static void add_to(torch::Library& m) {
    m.impl("rotary_embedding", forward);
    m.impl("rotary_embedding_backward", backward);
  }

 private:
  static at::Tensor rotate(const char* op, const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                           bool inverse) {
    const c10::DeviceGuard guard(x.device());
    const at::Tensor y = rotary_output(op, x, cos, sin);
    Device::rotate(RotaryWork(x, cos, sin, y, inverse));
    return y;
  }
};

}  // namespace limbeck::kernels
