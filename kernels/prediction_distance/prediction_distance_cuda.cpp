// The distances under the CUDA key: a composition of ATen operators in float64, by so many rows at a time that what is
// wide stays small. Plain C++: nothing here needs nvcc or the CUDA library.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/logsumexp.h>
#include <torch/library.h>

#include <algorithm>

#include "kernels/prediction_distance/prediction_distance_operators.h"

namespace limbeck::kernels {
namespace {

constexpr int64_t kWideAtOnce = int64_t{1} << 22;  // values of a block of rows: 32 MB in float64

template <class Work>
void in_blocks_of_rows(const at::Tensor& logits, const Work& work) {
  const int64_t rows = logits.size(0), of_a_block = std::max<int64_t>(1, kWideAtOnce / logits.size(1));
  for (int64_t begin = 0; begin < rows; begin += of_a_block) work(begin, std::min(of_a_block, rows - begin));
}

at::Tensor wide_rows(const at::Tensor& logits, int64_t begin, int64_t count) {
  return logits.narrow(0, begin, count).to(at::kDouble);
}

at::Tensor log_sums_on_cuda(const at::Tensor& logits) {
  const at::Tensor sums = log_sums_output(logits);
  in_blocks_of_rows(logits, [&](int64_t begin, int64_t count) {
    sums.narrow(0, begin, count).copy_(at::logsumexp(wide_rows(logits, begin, count), -1));
  });
  return sums;
}

DistanceTensors distances_on_cuda(const at::Tensor& logits, const at::Tensor& reference,
                                  const at::Tensor& of_reference) {
  const DistanceTensors out = distances_output(logits, reference, of_reference);
  in_blocks_of_rows(logits, [&](int64_t begin, int64_t count) {
    const auto put = [&](const at::Tensor& to, const at::Tensor& x) { to.narrow(0, begin, count).copy_(x); };
    const at::Tensor z = wide_rows(logits, begin, count), other = wide_rows(reference, begin, count), more = z - other;
    const at::Tensor sums = at::logsumexp(z, -1), others = of_reference.narrow(0, begin, count);
    put(std::get<0>(out), sums);
    put(std::get<1>(out), sums - others - ((other - others.unsqueeze(-1)).exp() * more).sum(-1));
    put(std::get<2>(out), (more * more).sum(-1));
  });
  return out;
}

TORCH_LIBRARY_IMPL(limbeck, CUDA, m) {
  m.impl("log_sums", &log_sums_on_cuda);
  m.impl("prediction_distances", &distances_on_cuda);
}

}  // namespace
}  // namespace limbeck::kernels
