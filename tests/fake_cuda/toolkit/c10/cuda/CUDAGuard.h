// In the place of libc10_cuda's header.
#pragma once
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace c10::cuda {

class CUDAGuard {
 public:
  explicit CUDAGuard(Device device) : guard_(device) {
    TORCH_CHECK(device.is_cuda(), "Expected a CUDA device, but got ", device);
  }

 private:
  DeviceGuard guard_;
};

// Of the calling thread.
inline void set_device(DeviceIndex device) { limbeck::fake_cuda::exchange_device(device); }

class CUDAStreamGuard {
 public:
  explicit CUDAStreamGuard(CUDAStream stream)
      : device_(limbeck::fake_cuda::exchange_device(stream.device_index())),
        before_(limbeck::fake_cuda::exchange_stream(stream.number())) {}
  ~CUDAStreamGuard() {
    limbeck::fake_cuda::exchange_stream(before_);
    limbeck::fake_cuda::exchange_device(device_);
  }
  CUDAStreamGuard(const CUDAStreamGuard&) = delete;
  CUDAStreamGuard& operator=(const CUDAStreamGuard&) = delete;

 private:
  int device_;
  limbeck::fake_cuda::Stream before_;
};

}  // namespace c10::cuda
