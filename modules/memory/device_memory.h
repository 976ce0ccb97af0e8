// The peak of tensors' bytes on one device: of a GPU as its own allocator counts them, of the CPU as HostMemory does.
#pragma once
#include <c10/core/Device.h>

#include <cstdint>

namespace limbeck::memory {

class DeviceMemory {
 public:
  explicit DeviceMemory(c10::Device device) : device_(device) {}

  // Highest number of live bytes since the last reset_peak().
  int64_t peak_bytes() const;
  void reset_peak() const;

 private:
  c10::Device device_;
};

}  // namespace limbeck::memory
