// Host memory that is registered with the device, in whole pages. What a stream copies into it nobody can touch before
// the host has waited for that: a touch ends the process with a message.
#pragma once
#include <cstddef>

#include "fake_cuda/streams.h"

namespace limbeck::fake_cuda {

// 0, or the number that CUDA has for why not: part of it is registered already, or, with
// LIMBECK_FAKE_CUDA_LOCKS_NOTHING set, there is no memory left.
int register_pages(void* memory, size_t bytes);
bool unregister_pages(void* memory);  // false: it was not
bool is_registered(const void* address);

// While it lives the pages that hold the address are open to a copy; nothing where they are not registered.
class HostPages {
 public:
  HostPages(const void* address, const Use& written);
  ~HostPages();
  HostPages(const HostPages&) = delete;
  HostPages& operator=(const HostPages&) = delete;

 private:
  const void* address_;
};

// Opens what the host has waited for by now.
void open_pages_waited_for();

// Ends the process where the address is one of pages that a stream still writes.
void refuse_early_touch(const void* address);

}  // namespace limbeck::fake_cuda
