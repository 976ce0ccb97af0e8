// Host memory that a GPU writes by itself, of the bytes asked for and no more than the rest of a page beside them:
// PyTorch's pinned allocator rounds up to a power of two, and a checkpoint's copy of 8.4 GB would take 16.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <string>

namespace limbeck::memory {

struct PageLocked {
  at::Tensor bytes;   // [bytes], on the CPU; unlocks and gives the memory back when the last view of it goes
  std::string fault;  // why its pages are not locked; "" where they are
};
PageLocked page_locked(int64_t bytes, c10::Device device);

}  // namespace limbeck::memory
