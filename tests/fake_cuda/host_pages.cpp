#include "fake_cuda/host_pages.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "fake_cuda/counters.h"
#include "fake_cuda/device_memory.h"

namespace limbeck::fake_cuda {
namespace {

constexpr uintptr_t kPage = 4096;
constexpr int kNoMemory = 2, kAlreadyRegistered = 712;

struct Range {
  size_t bytes;
  std::vector<Use> written;  // that the host has not waited for
};

struct Ranges {
  std::mutex mutex;
  std::map<uintptr_t, Range> all;  // by where they begin
  std::atomic<int> closed{0};
};

Ranges& ranges() {
  static auto& one = *new Ranges;
  return one;
}

// The range that holds this address; the mutex is held.
std::map<uintptr_t, Range>::iterator range_of(uintptr_t address) {
  auto& all = ranges().all;
  auto found = all.upper_bound(address);
  if (found == all.begin()) return all.end();
  --found;
  return address < found->first + found->second.bytes ? found : all.end();
}

void protect(uintptr_t begin, size_t bytes, int how) {
  const uintptr_t first = begin / kPage * kPage, end = (begin + bytes + kPage - 1) / kPage * kPage;
  if (mprotect(reinterpret_cast<void*>(first), end - first, how) != 0) die("cannot guard registered memory");
}

}  // namespace

int register_pages(void* memory, size_t bytes) {
  if (std::getenv("LIMBECK_FAKE_CUDA_LOCKS_NOTHING") != nullptr) return kNoMemory;
  watch_faults();
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  // What is guarded must be pages of its own.
  if (begin % kPage != 0 || bytes % kPage != 0)
    die("registered memory is %zu bytes at %p: no whole pages", bytes, memory);
  const std::lock_guard lock(ranges().mutex);
  const auto after = ranges().all.lower_bound(begin);
  if (range_of(begin) != ranges().all.end() || (after != ranges().all.end() && after->first < begin + bytes)) {
    return kAlreadyRegistered;
  }
  ranges().all.emplace(begin, Range{bytes, {}});
  const int64_t now = counters().registered_bytes += static_cast<int64_t>(bytes);
  if (now > counters().most_registered_bytes) counters().most_registered_bytes = now;
  return 0;
}

bool unregister_pages(void* memory) {
  const std::lock_guard lock(ranges().mutex);
  const auto found = ranges().all.find(reinterpret_cast<uintptr_t>(memory));
  if (found == ranges().all.end()) return false;
  if (!found->second.written.empty()) {
    const Use& use = found->second.written.back();
    die("memory is unregistered that %s on stream %d writes, and the host has not waited for it", use.name, use.stream);
  }
  counters().registered_bytes -= static_cast<int64_t>(found->second.bytes);
  ranges().all.erase(found);
  return true;
}

bool is_registered(const void* address) {
  const std::lock_guard lock(ranges().mutex);
  return range_of(reinterpret_cast<uintptr_t>(address)) != ranges().all.end();
}

HostPages::HostPages(const void* address, const Use& written) : address_(address) {
  const std::lock_guard lock(ranges().mutex);
  const auto found = range_of(reinterpret_cast<uintptr_t>(address));
  if (found == ranges().all.end()) return;
  if (found->second.written.empty()) ++ranges().closed;
  found->second.written.push_back(written);
  protect(found->first, found->second.bytes, PROT_READ | PROT_WRITE);
}

HostPages::~HostPages() {
  const std::lock_guard lock(ranges().mutex);
  const auto found = range_of(reinterpret_cast<uintptr_t>(address_));
  if (found != ranges().all.end()) protect(found->first, found->second.bytes, PROT_NONE);
}

void open_pages_waited_for() {
  if (ranges().closed == 0) return;
  const std::lock_guard lock(ranges().mutex);
  for (auto& [begin, range] : ranges().all) {
    if (range.written.empty() || std::erase_if(range.written, host_follows) == 0 || !range.written.empty()) continue;
    --ranges().closed;
    protect(begin, range.bytes, PROT_READ | PROT_WRITE);
  }
}

void refuse_early_touch(const void* address) {
  const std::lock_guard lock(ranges().mutex);
  const auto found = range_of(reinterpret_cast<uintptr_t>(address));
  if (found == ranges().all.end() || found->second.written.empty()) return;
  const Use& use = found->second.written.back();
  die("the host reads or writes memory that %s on stream %d writes, and has not waited for it", use.name, use.stream);
}

}  // namespace limbeck::fake_cuda
