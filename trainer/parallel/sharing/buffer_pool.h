// Buffers of whole units, lent and taken back. The heap would cut a freed one into small tensors, and the next whole
// would not fit any more: after a few steps each rank held more in holes than in weights. Any thread.
#pragma once
#include <ATen/core/Tensor.h>

#include <memory>

namespace limbeck::parallel {

class BufferPool {
 public:
  BufferPool();

  // At least `bytes` on the device of `allocator`; comes back when it is dropped, after the pool itself too.
  c10::DataPtr lend(c10::Allocator* allocator, size_t bytes);
  // [length], with whatever the memory held.
  at::Tensor tensor(int64_t length, const c10::TensorOptions& options);

 private:
  struct Kept;
  std::shared_ptr<Kept> kept_;
};

}  // namespace limbeck::parallel
