// test_driver touch: the host reads a tensor of the device as one of its own.
#include <ATen/ATen.h>

#include <cstdio>

#include "kernels/operator/cuda_library.h"
#include "tests/driver/verbs.h"

namespace limbeck::test {

int touch_device() {
  kernels::load_cuda_library();
  const at::Tensor ones = at::ones({3}, at::kCUDA);
  std::printf("read %g\n", static_cast<double>(*ones.const_data_ptr<float>()));
  return 0;
}

}  // namespace limbeck::test
