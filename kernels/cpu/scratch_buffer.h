// Scratch memory of one thread for one use, kept between calls: the allocator would unmap and fault it again each time.
// It grows to the largest request and stays; what an operator may ask for is bounded where it asks.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <new>

namespace limbeck::kernels {

template <class Use>
class ScratchBuffer {
 public:
  // Uninitialised, aligned to 64 bytes; the previous contents are lost when it grows.
  static void* at_least(size_t bytes) {
    thread_local ScratchBuffer buffer;
    if (bytes > buffer.bytes_) {
      std::free(buffer.memory_);
      buffer.bytes_ = 0;
      buffer.memory_ = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
      if (!buffer.memory_) throw std::bad_alloc();
      buffer.bytes_ = bytes;
    }
    return buffer.memory_;
  }

 private:
  ScratchBuffer() = default;
  ~ScratchBuffer() { std::free(memory_); }
  void* memory_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace limbeck::kernels
