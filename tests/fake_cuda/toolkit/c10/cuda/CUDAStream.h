// In the place of libc10_cuda's header.
#pragma once
#include <c10/core/Device.h>
#include <cuda_runtime_api.h>

namespace c10::cuda {

class CUDAStream {
 public:
  explicit CUDAStream(limbeck::fake_cuda::Stream number) : number_(number) {}
  operator cudaStream_t() const { return reinterpret_cast<cudaStream_t>(static_cast<intptr_t>(number_)); }
  DeviceIndex device_index() const { return static_cast<DeviceIndex>(limbeck::fake_cuda::device_of(number_)); }
  limbeck::fake_cuda::Stream number() const { return number_; }

 private:
  limbeck::fake_cuda::Stream number_;
};

// Without a device, of the current one.
inline int device_or_current(DeviceIndex device) {
  return device < 0 ? limbeck::fake_cuda::current_device() : static_cast<int>(device);
}

inline CUDAStream getCurrentCUDAStream(DeviceIndex device = -1) {
  return CUDAStream(limbeck::fake_cuda::current_stream(device_or_current(device)));
}

inline CUDAStream getStreamFromPool(bool /*isHighPriority*/ = false, DeviceIndex device = -1) {
  return CUDAStream(limbeck::fake_cuda::new_stream(device_or_current(device)));
}

}  // namespace c10::cuda
