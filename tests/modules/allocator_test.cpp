#include "modules/memory/allocator.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>

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

size_t resident_bytes() {
  size_t whole = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> whole >> resident;
  return resident * static_cast<size_t>(::sysconf(_SC_PAGESIZE));
}

// 0: what was freed below a small block that stays was kept, and went when holes were given back.
int fate_of_a_hole() {
  constexpr size_t large = 64u << 20, most = 8u << 20;
  const size_t before = resident_bytes();
  void* volatile block = std::malloc(large);
  std::memset(block, 1, large);
  void* volatile stays = std::malloc(100);
  std::free(block);
  const bool kept = resident_bytes() > before + large - most;
  memory::give_back_holes();
  const bool went = resident_bytes() < before + most;
  std::free(stays);
  return !kept ? 1 : went ? 0 : 2;
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

TEST(TuneAllocator, HolesBetweenBuffersAreGivenBackWhenAsked) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "AddressSanitizer brings its own allocator";
#endif
  EXPECT_EXIT((memory::tune_allocator(), std::exit(fate_of_a_hole())), ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace limbeck::cli
