#include "modules/memory/allocator.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <cstdlib>

namespace limbeck::cli {
namespace {

constexpr size_t kLogits = 256u << 20;  // as glibc comes, mapped for itself

// 0: the buffer came from the heap and its memory is still there after free. 1: mapped for itself. 2: handed back.
int fate_of_a_big_buffer() {
  void* volatile block = std::malloc(kLogits);  // volatile: the pair is not optimised away
  const bool mapped = ::mallinfo2().hblkhd >= kLogits;
  std::free(block);
  if (mapped) return 1;
  return ::mallinfo2().arena >= kLogits ? 0 : 2;
}

// In children: the setting is the process's, and stays.
TEST(TuneAllocator, KeepsBigBuffersInTheProcess) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "AddressSanitizer brings its own allocator";
#endif
  EXPECT_EXIT((memory::tune_allocator(), std::exit(fate_of_a_big_buffer())), ::testing::ExitedWithCode(0), "");
  EXPECT_EXIT(std::exit(fate_of_a_big_buffer()), ::testing::ExitedWithCode(1), "") << "glibc needs no tuning any more";
}

TEST(TuneAllocator, LeavesWhatTheUserSetAlone) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "AddressSanitizer brings its own allocator";
#endif
  EXPECT_EXIT(
      (::setenv("MALLOC_MMAP_THRESHOLD_", "131072", 1), memory::tune_allocator(), std::exit(fate_of_a_big_buffer())),
      ::testing::ExitedWithCode(1), "");
}

}  // namespace
}  // namespace limbeck::cli
