// Counts the bytes of tensors on meta: what a step would hold, from the step itself and not from a formula.
// Installed as the meta device's allocator while it lives; one at a time in the process.
#pragma once
#include <cstdint>

namespace limbeck::memory {

class MetaMemory {
 public:
  MetaMemory();
  ~MetaMemory();
  MetaMemory(const MetaMemory&) = delete;
  MetaMemory& operator=(const MetaMemory&) = delete;

  static int64_t live_bytes();
  // Highest live_bytes() since the last reset_peak().
  static int64_t peak_bytes();
  static void reset_peak();
};

}  // namespace limbeck::memory
