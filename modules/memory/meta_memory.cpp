#include "modules/memory/meta_memory.h"

#include <c10/core/Allocator.h>

#include "modules/memory/byte_counter.h"

namespace limbeck::memory {

namespace {

ByteCounter meta_bytes;

void release_meta(void* context) {
  auto* bytes = static_cast<int64_t*>(context);
  meta_bytes.remove(*bytes);
  delete bytes;
}

class MetaAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t n) override {
    // The context alone carries the size; there is no memory behind a meta tensor.
    auto* bytes = new int64_t(static_cast<int64_t>(n));
    meta_bytes.add(*bytes);
    return {nullptr, bytes, &release_meta, c10::Device(c10::kMeta)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void*, const void*, size_t) const override {}
};

MetaAllocator meta_allocator;
c10::Allocator* previous = nullptr;

}  // namespace

MetaMemory::MetaMemory() {
  previous = c10::GetAllocator(c10::kMeta);
  meta_bytes.clear();
  c10::SetAllocator(c10::kMeta, &meta_allocator, /*priority=*/100);
}

MetaMemory::~MetaMemory() { c10::SetAllocator(c10::kMeta, previous, /*priority=*/100); }

int64_t MetaMemory::live_bytes() { return meta_bytes.live(); }
int64_t MetaMemory::peak_bytes() { return meta_bytes.peak(); }
void MetaMemory::reset_peak() { meta_bytes.reset_peak(); }

}  // namespace limbeck::memory
