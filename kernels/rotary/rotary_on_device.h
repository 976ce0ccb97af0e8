// The rotary embedding on any device: a Device says how positions run there, by rotate(const RotaryWork&) and, of two
// tensors at the same positions, by rotate_both().
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

  static std::tuple<at::Tensor, at::Tensor> forward_of_both(const at::Tensor& q, const at::Tensor& k,
                                                            const at::Tensor& cos, const at::Tensor& sin) {
    return rotate_both("rotary_embedding_of_both", q, k, cos, sin, false);
  }
  static std::tuple<at::Tensor, at::Tensor> backward_of_both(const at::Tensor& grad_q, const at::Tensor& grad_k,
                                                             const at::Tensor& cos, const at::Tensor& sin) {
    return rotate_both("rotary_embedding_of_both_backward", grad_q, grad_k, cos, sin, true);
  }

  static void add_to(torch::Library& m) {
    m.impl("rotary_embedding", forward);
    m.impl("rotary_embedding_backward", backward);
    m.impl("rotary_embedding_of_both", forward_of_both);
    m.impl("rotary_embedding_of_both_backward", backward_of_both);
  }

 private:
  static at::Tensor rotate(const char* op, const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                           bool inverse) {
    const c10::DeviceGuard guard(x.device());
    const at::Tensor y = rotary_output(op, x, cos, sin);
    Device::rotate(RotaryWork(x, cos, sin, y, inverse));
    return y;
  }
  static std::tuple<at::Tensor, at::Tensor> rotate_both(const char* op, const at::Tensor& q, const at::Tensor& k,
                                                        const at::Tensor& cos, const at::Tensor& sin, bool inverse) {
    const c10::DeviceGuard guard(q.device());
    const auto [y_q, y_k] = rotary_outputs(op, q, k, cos, sin);
    Device::rotate_both(RotaryWork(q, cos, sin, y_q, inverse), RotaryWork(k, cos, sin, y_k, inverse));
    return {y_q, y_k};
  }
};

}  // namespace limbeck::kernels
