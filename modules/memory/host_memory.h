// Counts the bytes of CPU tensors, live and at the peak, as the allocator hands them out: what a memory plan is held
// against, apart from code pages and library scratch. Installed once for the process, before the first tensor.
#pragma once
#include <cstdint>

namespace limbeck::memory {

class HostMemory {
 public:
  // From now on every CPU tensor is counted. Idempotent; costs an atomic addition an allocation.
  static void count_tensors();
  static bool counting();
  static int64_t live_bytes();
  // Highest live_bytes() since the last reset_peak().
  static int64_t peak_bytes();
  static void reset_peak();
  // Hands freed memory back to the kernel, where the C library can: for moments after which much less is needed.
  static void give_back();
};

}  // namespace limbeck::memory
