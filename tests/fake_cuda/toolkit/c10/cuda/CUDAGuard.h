// In the place of libc10_cuda's header: one device with one stream.
#pragma once
#include <c10/core/DeviceGuard.h>
#include <cuda_runtime_api.h>

namespace c10::cuda {

class CUDAGuard {
 public:
  explicit CUDAGuard(Device device) : guard_(device) {
    TORCH_CHECK(device.is_cuda(), "Expected a CUDA device, but got ", device);
  }

 private:
  DeviceGuard guard_;
};

inline cudaStream_t getCurrentCUDAStream() { return nullptr; }

}  // namespace c10::cuda
