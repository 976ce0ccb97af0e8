#include <ATen/Parallel.h>
#include <torch/library.h>

#include "kernels/cpu/task_grain.h"
#include "kernels/gated/gated_activation_operators.h"
#include "kernels/operator/checks.h"

namespace limbeck::kernels {
namespace {

template <class Loop>
void for_rows(const Rows& rows, const Loop& loop) {
  at::parallel_for(0, rows.count, items_per_task(2 * rows.width), loop);  // gate and up
}

template <GatedKind kind>
at::Tensor forward(const at::Tensor& gate, const at::Tensor& up) {
  const at::Tensor out = gated_output(kind, gate, up);
  const Rows gate_rows(gate), up_rows(up);
  const GatedForward args{kind,           gate_rows.data,         gate_rows.stride, up_rows.data,
                          up_rows.stride, out.mutable_data_ptr(), gate_rows.width};
  const Storage storage = storage_of(gate);
  for_rows(gate_rows, [&](int64_t begin, int64_t end) { gated_loops_here().forward(storage, args, begin, end); });
  return out;
}

template <GatedKind kind>
std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& grad, const at::Tensor& gate, const at::Tensor& up) {
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
  const Storage storage = storage_of(gate);
  for_rows(gate_rows, [&](int64_t begin, int64_t end) { gated_loops_here().backward(storage, args, begin, end); });
  return {grad_gate, grad_up};
}

TORCH_LIBRARY_IMPL(limbeck, CPU, m) {
  m.impl("swiglu", forward<GatedKind::kSwiGlu>);
  m.impl("swiglu_backward", backward<GatedKind::kSwiGlu>);
  m.impl("geglu_tanh", forward<GatedKind::kGeGluTanh>);
  m.impl("geglu_tanh_backward", backward<GatedKind::kGeGluTanh>);
}

}  // namespace
}  // namespace limbeck::kernels
