#include "modules/memory/device_memory.h"

#include <c10/core/CachingDeviceAllocator.h>

#include "modules/memory/host_memory.h"

namespace limbeck::memory {

int64_t DeviceMemory::peak_bytes() const {
  if (device_.is_cpu()) return HostMemory::peak_bytes();
  constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return c10::getDeviceAllocator(device_.type())->getDeviceStats(device_.index()).allocated_bytes[kAll].peak;
}

void DeviceMemory::reset_peak() const {
  if (device_.is_cpu()) return HostMemory::reset_peak();
  c10::getDeviceAllocator(device_.type())->resetPeakStats(device_.index());
}

}  // namespace limbeck::memory
