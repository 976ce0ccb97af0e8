#include "modules/memory/allocator.h"

#include <malloc.h>

#include <cstdlib>

namespace limbeck::memory {
namespace {

constexpr int kMebibyte = 1 << 20;
constexpr int kMostMappings = 65536;  // as glibc comes

// A refusal (another C library, another allocator) costs speed only, so it is no error.
bool set_unless(const char* environment, int parameter, int value) {
  return std::getenv(environment) || ::mallopt(parameter, value) == 1;
}

}  // namespace

// As it comes, glibc maps every buffer above its threshold afresh, the kernel zeroes it page by page as it is touched,
// and freeing unmaps it: a training step that allocates the same gigabytes each time spends most of its time in page
// faults. Measured: 20 buffers of 128 MiB, filled and freed, 1.3 s so and 0.36 s tuned; a distillation step of plain
// PyTorch on two cores 1.0 s and 0.4 s. Tuned, big buffers come from the one growing heap, whose top is never trimmed.
//
// glibc before 2.35 refuses a threshold above 32 MiB, and logits are larger than that: there mapping is switched off.
void tune_allocator() {
  const bool accepted = set_unless("MALLOC_MMAP_THRESHOLD_", M_MMAP_THRESHOLD, 2047 * kMebibyte);
  if (!accepted) set_unless("MALLOC_MMAP_MAX_", M_MMAP_MAX, 0);
  set_unless("MALLOC_TRIM_THRESHOLD_", M_TRIM_THRESHOLD, 2047 * kMebibyte);
  set_unless("MALLOC_TOP_PAD_", M_TOP_PAD, 64 * kMebibyte);
}

void map_large_buffers() {
  if (std::getenv("MALLOC_MMAP_MAX_") == nullptr) ::mallopt(M_MMAP_MAX, kMostMappings);
  set_unless("MALLOC_MMAP_THRESHOLD_", M_MMAP_THRESHOLD, kMebibyte);
}

void give_back_holes() { ::malloc_trim(0); }

}  // namespace limbeck::memory
