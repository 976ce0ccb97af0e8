#include "modules/precision/meta_memory.h"

#include <c10/core/Allocator.h>

#include <algorithm>
#include <atomic>

namespace limbeck::precision {

namespace {

std::atomic<int64_t> live{0};
std::atomic<int64_t> peak{0};

void add(int64_t bytes) {
  const int64_t now = live.fetch_add(bytes) + bytes;
  int64_t seen = peak.load();
  while (now > seen && !peak.compare_exchange_weak(seen, now)) {
  }
}

void release(void* context) {
  auto* bytes = static_cast<int64_t*>(context);
  live.fetch_sub(*bytes);
  delete bytes;
}

class CountingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t n) override {
    // The context alone carries the size; there is no memory behind a meta tensor.
    auto* bytes = new int64_t(static_cast<int64_t>(n));
    add(*bytes);
    return {nullptr, bytes, &release, c10::Device(c10::kMeta)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void*, const void*, size_t) const override {}
};

CountingAllocator counting;
c10::Allocator* previous = nullptr;

}  // namespace

MetaMemory::MetaMemory() {
  previous = c10::GetAllocator(c10::kMeta);
  live = 0;
  peak = 0;
  c10::SetAllocator(c10::kMeta, &counting, /*priority=*/100);
}

MetaMemory::~MetaMemory() { c10::SetAllocator(c10::kMeta, previous, /*priority=*/100); }

int64_t MetaMemory::live_bytes() { return live; }
int64_t MetaMemory::peak_bytes() { return peak; }
void MetaMemory::reset_peak() { peak = live.load(); }

}  // namespace limbeck::precision
