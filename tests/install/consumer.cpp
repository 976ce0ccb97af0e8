// A program of a user's: one operator of Limbeck's, called through an installed header and library.
#include <kernels/linear/linear.h>
#include <modules/errors.h>

#include <ATen/ops/full.h>
#include <cstdio>

int main() {
  const auto x = at::full({2, 3}, 2.0);
  const auto weight = at::full({4, 3}, 0.5);
  const auto y = limbeck::kernels::linear(x, weight);
  const bool right = y.sizes() == at::IntArrayRef({2, 4}) && y.min().item<float>() == 3 && y.max().item<float>() == 3;
  std::printf("consumer: linear gives %s\n", right ? "3, as it should" : "something else than 3");
  return static_cast<int>(right ? limbeck::ExitCode::kDone : limbeck::ExitCode::kNumeric);
}
