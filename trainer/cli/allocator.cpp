#include "trainer/cli/allocator.h"

#include <malloc.h>

#include <cstdlib>

namespace limbeck::cli {
namespace {

constexpr int kMebibyte = 1 << 20;

void set_unless(const char* environment, int parameter, int value) {
  // A refusal (another C library, another allocator) costs speed only, so it is no error.
  if (!std::getenv(environment)) ::mallopt(parameter, value);
}

}  // namespace

// As it comes, glibc maps every buffer above its threshold afresh, the kernel zeroes it page by page as it is touched,
// and freeing unmaps it: a training step that allocates the same gigabytes each time spends most of its time in page
// faults (a distillation step of plain PyTorch on two cores: 1.0 s so, 0.4 s tuned).
//
// Two thresholds are not enough: glibc refuses a mmap threshold above 32 MiB, and logits are larger than that. So mmap
// is also switched off as the source of big buffers; they come from the one growing heap, whose top is never trimmed.
void tune_allocator() {
  set_unless("MALLOC_MMAP_THRESHOLD_", M_MMAP_THRESHOLD, 32 * kMebibyte);
  set_unless("MALLOC_MMAP_MAX_", M_MMAP_MAX, 0);
  set_unless("MALLOC_TRIM_THRESHOLD_", M_TRIM_THRESHOLD, 2047 * kMebibyte);
  set_unless("MALLOC_TOP_PAD_", M_TOP_PAD, 64 * kMebibyte);
}

}  // namespace limbeck::cli
