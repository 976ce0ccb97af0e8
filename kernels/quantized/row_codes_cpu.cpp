#include <ATen/Parallel.h>
#include <torch/library.h>

#include <vector>

#include "kernels/cpu/task_grain.h"
#include "kernels/quantized/int8_dynamic_loops.h"
#include "kernels/quantized/row_codes.h"

namespace limbeck::kernels {
namespace {

at::Tensor codes_on_cpu(const at::Tensor& x) {
  const at::Tensor y = row_codes_output(x);
  if (x.numel() == 0) return y;
  const at::Tensor dense = x.contiguous();
  const int64_t width = x.size(-1);
  const auto* from = dense.const_data_ptr<float>();
  auto* to = y.mutable_data_ptr<float>();
  const auto& loops = int8_dynamic_loops_here();
  at::parallel_for(0, x.numel() / width, items_per_task(width), [&](int64_t begin, int64_t end) {
    std::vector<int8_t> codes(static_cast<size_t>(width));
    for (int64_t row = begin; row < end; ++row) {
      float scale = 0;
      loops.quantize_rows(Storage::kFloat32, from + row * width, 1, width, kStepsOfSymmetric, codes.data(), &scale);
      for (int64_t i = 0; i < width; ++i) to[row * width + i] = static_cast<float>(codes[i]) * scale;
    }
  });
  return y;
}

TORCH_LIBRARY_IMPL(limbeck, CPU, m) { m.impl("seen_through_row_codes", &codes_on_cpu); }

}  // namespace
}  // namespace limbeck::kernels
