#include "modules/memory/page_locked.h"

#include <ATen/ops/from_blob.h>
#include <c10/core/DeviceGuard.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "kernels/operator/cuda_library.h"
#include "kernels/operator/rounded_up.h"
#include "modules/errors.h"

namespace limbeck::memory {
namespace {

using LockPages = const char* (*)(void* memory, size_t bytes);
using UnlockPages = void (*)(void* memory);

template <class Function>
Function symbol(const char* name) {
  return reinterpret_cast<Function>(kernels::cuda_library_symbol(name));
}

size_t whole_pages(int64_t bytes) {
  const int64_t page = ::sysconf(_SC_PAGESIZE);
  return static_cast<size_t>(kernels::rounded_up_quotient(bytes, page) * page);
}

}  // namespace

PageLocked page_locked(int64_t bytes, c10::Device device) {
  const auto options = at::TensorOptions(at::kCPU).dtype(at::kByte);
  if (bytes == 0) return {at::from_blob(nullptr, {0}, options), ""};
  const size_t size = whole_pages(bytes);
  void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    throw IoError(fmt::format("{} bytes of host memory for a copy of what is on {}: {}: free memory on this host", size,
                              device.str(), std::strerror(errno)));
  }
  const auto lock = symbol<LockPages>("limbeck_cuda_lock_pages");
  const auto unlock = symbol<UnlockPages>("limbeck_cuda_unlock_pages");
  const c10::DeviceGuard guard(device);
  const char* fault =
      lock == nullptr || unlock == nullptr ? "liblimbeck_cuda.so cannot lock pages" : lock(memory, size);
  const bool locked = fault == nullptr;
  const auto give_back = [size, locked, unlock](void* of) {
    if (locked) unlock(of);
    ::munmap(of, size);
  };
  return {at::from_blob(memory, {bytes}, give_back, options), locked ? "" : fault};
}

}  // namespace limbeck::memory
