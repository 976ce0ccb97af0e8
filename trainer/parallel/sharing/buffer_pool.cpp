#include "trainer/parallel/sharing/buffer_pool.h"

#include <ATen/ops/empty.h>

#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace limbeck::parallel {

struct BufferPool::Kept {
  std::mutex mutex;
  std::map<std::pair<c10::Allocator*, size_t>, std::vector<c10::DataPtr>> free;  // by exact size
};

namespace {

template <class Kept>
struct Loan {
  std::shared_ptr<Kept> owner;
  c10::Allocator* allocator;
  size_t bytes;
  c10::DataPtr memory;

  static void end(void* context) {
    const std::unique_ptr<Loan> loan(static_cast<Loan*>(context));
    const std::lock_guard lock(loan->owner->mutex);
    loan->owner->free[{loan->allocator, loan->bytes}].push_back(std::move(loan->memory));
  }
};

}  // namespace

BufferPool::BufferPool() : kept_(std::make_shared<Kept>()) {}

c10::DataPtr BufferPool::lend(c10::Allocator* allocator, size_t bytes) {
  auto loan = std::make_unique<Loan<Kept>>(Loan<Kept>{kept_, allocator, bytes, {}});
  {
    const std::lock_guard lock(kept_->mutex);
    auto& free = kept_->free[{allocator, bytes}];
    if (!free.empty()) {
      loan->memory = std::move(free.back());
      free.pop_back();
    }
  }
  if (!loan->memory) loan->memory = allocator->allocate(bytes);
  void* const data = loan->memory.get();
  const c10::Device device = loan->memory.device();
  return {data, loan.release(), &Loan<Kept>::end, device};
}

at::Tensor BufferPool::tensor(int64_t length, const c10::TensorOptions& options) {
  at::Tensor made = at::empty({0}, options);
  const c10::Storage& storage = made.storage();
  const size_t bytes = static_cast<size_t>(length) * made.element_size();
  storage.set_data_ptr_noswap(lend(storage.allocator(), bytes));
  storage.set_nbytes(bytes);
  made.unsafeGetTensorImpl()->set_sizes_contiguous({length});
  return made;
}

}  // namespace limbeck::parallel
