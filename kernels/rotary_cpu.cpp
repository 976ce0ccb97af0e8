#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "kernels/checks.h"
#include "kernels/rotary_operators.h"

namespace limbeck::kernels {
namespace {

constexpr int64_t kElementsPerTask = 1 << 14;

at::Tensor rotate(const char* op, const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool inverse) {
  static const RotaryLoops& loops = rotary_loops_for(cpu_isa());
  const at::Tensor y = rotary_output(op, x, cos, sin);
  const RotaryWork work(x, cos, sin, y, inverse);
  const Storage storage = storage_of(x);
  const int64_t per_position = std::max<int64_t>(1, work.arguments.heads * work.arguments.width);
  at::parallel_for(0, work.positions, std::max<int64_t>(1, kElementsPerTask / per_position),
                   [&](int64_t begin, int64_t end) { loops.rotate(storage, work.arguments, begin, end); });
  return y;
}

at::Tensor forward(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  return rotate("rotary_embedding", x, cos, sin, false);
}
at::Tensor backward(const at::Tensor& grad, const at::Tensor& cos, const at::Tensor& sin) {
  return rotate("rotary_embedding_backward", grad, cos, sin, true);
}

TORCH_LIBRARY_IMPL(limbeck, CPU, m) {
  m.impl("rotary_embedding", forward);
  m.impl("rotary_embedding_backward", backward);
}

}  // namespace
}  // namespace limbeck::kernels
