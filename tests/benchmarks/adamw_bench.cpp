// One AdamW update against what PyTorch offers for the same state: at::_fused_adamw_ on float32 tensors, and for
// bfloat16 weights with float32 masters the gradient widened before it and the weights rounded after it. And the global
// norm against at::_foreach_norm.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <malloc.h>

#include "benchmarks/benchmarks.h"
#include "benchmarks/paired.h"
#include "kernels/adamw/adamw.h"

namespace limbeck::bench::adamw_bench {
namespace {

using Tensors = std::vector<at::Tensor>;

Tensors tensors(const std::vector<int64_t>& sizes, at::ScalarType dtype, double scale) {
  Tensors result;
  for (const int64_t size : sizes) result.push_back((at::randn({size}) * scale).to(at::TensorOptions().dtype(dtype)));
  return result;
}

struct Side {
  Tensors parameters, gradients, masters, first, second, wide_gradients, steps;

  Side(const std::vector<int64_t>& sizes, at::ScalarType dtype)
      : parameters(tensors(sizes, dtype, 1)), gradients(tensors(sizes, dtype, 1e-2)) {
    for (const at::Tensor& p : parameters) {
      masters.push_back(dtype == at::kFloat ? p : p.to(at::kFloat));
      first.push_back(at::zeros(p.sizes()));
      second.push_back(at::zeros(p.sizes()));
      wide_gradients.push_back(at::empty(p.sizes()));
      steps.push_back(at::zeros({}));
    }
  }

  void ours(bool half) const {
    kernels::adamw_step_(parameters, gradients, half ? masters : Tensors(), first, second,
                         {.step = 7, .learning_rate = 1e-3, .weight_decay = 0.01});
  }

  void theirs(bool half) const {
    for (size_t i = 0; i < parameters.size() && half; ++i) wide_gradients[i].copy_(gradients[i]);
    at::_fused_adamw_(masters, half ? wide_gradients : gradients, first, second, {}, steps, 1e-3, 0.9, 0.999, 0.01,
                      1e-8, false, false);
    for (size_t i = 0; i < parameters.size() && half; ++i) parameters[i].copy_(masters[i]);
  }
};

void add_all(const char* name, at::ScalarType dtype, const std::vector<int64_t>& sizes) {
  const bool half = dtype != at::kFloat;
  const auto ours = std::make_shared<Side>(sizes, dtype), theirs = std::make_shared<Side>(sizes, dtype);
  add_pair(
      std::string("adamw ") + name, [=] { ours->ours(half); }, [=] { theirs->theirs(half); });
  add_pair(
      std::string("norm ") + name, [=] { kernels::square_sums(ours->gradients); },
      [=] { at::_foreach_norm(theirs->gradients); });
}

}  // namespace

int main_of(int argc, char** argv) {
  const at::NoGradGuard no_gradient;
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, 2147483647);
  // The bench's student: width 256, 4 layers, a vocabulary of 32,000; then one of small tensors.
  const std::vector<int64_t> student = {32000 * 256, 32000 * 256, 1024 * 256, 1024 * 256, 256 * 256, 256 * 256,
                                        1024 * 256,  1024 * 256,  1024 * 256, 1024 * 256, 256,       256};
  const std::vector<int64_t> small(200, 576);
  add_all("bfloat16 student", at::kBFloat16, student);
  add_all("float32 student", at::kFloat, student);
  add_all("bfloat16 200 x 576", at::kBFloat16, small);
  return run_pairs(argc, argv);
}

}  // namespace limbeck::bench::adamw_bench
