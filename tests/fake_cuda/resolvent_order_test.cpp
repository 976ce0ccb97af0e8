// The resolvent's kernels leave nothing to the order in which blocks, warps and threads run.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <string>
#include <vector>

#include "fake_cuda/launch.h"
#include "kernels/resolvent/resolvent.h"
#include "support/operator_checks.h"

namespace limbeck::test {
namespace {

TEST(ResolventOrder, ChangesNoBit) {
  constexpr int64_t n = 9000;  // more segments than a block scans with a thread each
  const at::Tensor documents = at::arange(n).div(4001, "floor").cuda();
  Tensors in{random_tensor({2, n}, at::kFloat, 1) * 0.8 - 1.0, random_tensor({2, n - 1}, at::kFloat, 2) + 0.8,
             random_tensor({2, n - 1}, at::kFloat, 3) + 0.8, at::tensor({0.3f, 0.1f})};
  for (at::Tensor& one : in) one = one.cuda();
  for (const bool causal : {true, false}) {
    Tensors first;
    for (const uint64_t seed : {0, 1, 2, 3}) {
      fake_cuda::set_seed(seed);
      const auto op = [&](const Tensors& x) { return kernels::resolvent(x[0], x[1], x[2], x[3], causal, documents); };
      Tensors results = output_and_gradients(op, in, 4);
      for (at::Tensor& one : results) one = one.cpu();
      if (first.empty()) first = results;
      for (size_t k = 0; k < results.size(); ++k) expect_same_bits(first[k], results[k], std::to_string(seed));
    }
  }
  fake_cuda::set_seed(0);
}

}  // namespace
}  // namespace limbeck::test
