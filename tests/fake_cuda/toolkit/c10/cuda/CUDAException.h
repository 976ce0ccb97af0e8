// In the place of libc10_cuda's header: a launch that a GPU would refuse throws where our code checks it.
#pragma once
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#define C10_CUDA_KERNEL_LAUNCH_CHECK()                                                        \
  do {                                                                                        \
    const char* refused = ::limbeck::fake_cuda::take_launch_error();                          \
    TORCH_CHECK(refused == nullptr, "CUDA error: invalid configuration argument: ", refused); \
  } while (0)
