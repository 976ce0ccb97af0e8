// test_driver backward early|late: a backward on the device, with CUDA loaded before the process's first backward or
// after it. The second cannot work, and the fake device must show it: it is why commands load CUDA when they begin.
#include <ATen/ATen.h>

#include <cstdio>
#include <string_view>

#include "kernels/operator/cuda_library.h"
#include "tests/driver/verbs.h"

namespace limbeck::test {
namespace {

void run_backward(c10::Device device) {
  const at::Tensor weight = at::empty({3}, device).requires_grad_();
  weight.square().sum().backward();
}

}  // namespace

int late_load(int count, char** arguments) {
  const bool early = count == 2 && std::string_view(arguments[1]) == "early";
  try {
    if (early) kernels::load_cuda_library();
    run_backward(at::kMeta);
    kernels::load_cuda_library();
    run_backward(at::kCUDA);
  } catch (const c10::Error& error) {
    std::printf("refused: %s\n", error.what_without_backtrace());
    return 1;
  }
  std::printf("both backwards ran\n");
  return 0;
}

}  // namespace limbeck::test
