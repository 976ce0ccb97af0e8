#include <ATen/Parallel.h>
#include <torch/library.h>

#include "kernels/cpu/task_grain.h"
#include "kernels/operator/checks.h"
#include "kernels/rotary/rotary_operators.h"

namespace limbeck::kernels {
namespace {

at::Tensor rotate(const char* op, const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool inverse) {
  const at::Tensor y = rotary_output(op, x, cos, sin);
  const RotaryWork work(x, cos, sin, y, inverse);
  const Storage storage = storage_of(x);
  const int64_t per_position = work.arguments.heads * work.arguments.width;
  at::parallel_for(0, work.positions, items_per_task(per_position), [&](int64_t begin, int64_t end) {
    rotary_loops_here().rotate(storage, work.arguments, begin, end);
  });
  return y;
}

at::Tensor rotate_forward(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  return rotate("rotary_embedding", x, cos, sin, false);
}
at::Tensor rotate_backward(const at::Tensor& grad, const at::Tensor& cos, const at::Tensor& sin) {
  return rotate("rotary_embedding_backward", grad, cos, sin, true);
}

TORCH_LIBRARY_IMPL(limbeck, CPU, m) {
  m.impl("rotary_embedding", rotate_forward);
  m.impl("rotary_embedding_backward", rotate_backward);
}

}  // namespace
}  // namespace limbeck::kernels
