#include "modules/memory/host_memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <malloc.h>

#include <cstddef>
#include <cstring>
#include <new>

#include "modules/memory/byte_counter.h"

namespace limbeck::memory {

namespace {

ByteCounter host_bytes;
bool installed = false;

// The size stands in front of the tensor's bytes, as far as their alignment asks for.
constexpr size_t kFront = 64;

void release_host(void* data) {
  if (data == nullptr) return;
  char* begin = static_cast<char*>(data) - kFront;
  size_t size = 0;
  std::memcpy(&size, begin, sizeof(size));
  host_bytes.remove(static_cast<int64_t>(size));
  c10::free_cpu(begin);
}

class HostAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t n) override {
    if (n == 0) return {nullptr, nullptr, &release_host, c10::Device(c10::kCPU)};
    char* begin = static_cast<char*>(c10::alloc_cpu(n + kFront));
    std::memcpy(begin, &n, sizeof(n));
    host_bytes.add(static_cast<int64_t>(n));
    void* data = begin + kFront;
    return {data, data, &release_host, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release_host; }
  void copy_data(void* to, const void* from, size_t n) const override { default_copy_data(to, from, n); }
};

HostAllocator counting_allocator;

}  // namespace

void HostMemory::count_tensors() {
  if (installed) return;
  installed = true;
  c10::SetAllocator(c10::kCPU, &counting_allocator, /*priority=*/100);
}

bool HostMemory::counting() { return installed; }
int64_t HostMemory::live_bytes() { return host_bytes.live(); }
int64_t HostMemory::peak_bytes() { return host_bytes.peak(); }
void HostMemory::reset_peak() { host_bytes.reset_peak(); }

void HostMemory::give_back() {
#if defined(__GLIBC__)
  ::malloc_trim(0);
#endif
}

}  // namespace limbeck::memory
