// In the place of libc10_cuda's header.
#pragma once
#include <c10/core/Device.h>

namespace c10::cuda {

DeviceIndex device_count();

}  // namespace c10::cuda
