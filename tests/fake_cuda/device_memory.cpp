#include "fake_cuda/device_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "fake_cuda/counters.h"
#include "fake_cuda/host_pages.h"

namespace limbeck::fake_cuda {
namespace {

constexpr size_t kPage = 4096, kAlignment = 16;
constexpr unsigned char kFresh = 0xff, kBeside = 0xa5;

// Pages of the same bytes at two addresses, each followed by a page that is never readable.
struct Pages {
  char *device, *host;
  size_t size;
};

struct Block {
  Pages pages;
  size_t bytes, before;  // the block begins `before` bytes into its pages
  Uses uses;
  bool aside = false;
};

// Pages that a kernel has touched.
struct Opened {
  Pages pages;
  bool written;
};

struct Registry {
  std::mutex mutex;
  std::map<uintptr_t, Block> blocks;  // by where their device pages begin
  std::map<std::pair<size_t, Stream>, std::vector<Block>> free;
};

Registry& registry() {
  static auto& all = *new Registry;  // never taken down: tensors may outlive any static
  return all;
}

thread_local const char* (*kernel)() = nullptr;
thread_local std::vector<Opened>* opened = nullptr;
struct sigaction previous;

char* reserved(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(memory);
}

Pages new_pages(size_t size) {
  Pages pages{reserved(size + kPage), reserved(size + kPage), size};
  void* host = mmap(pages.host, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  // Of length 0: shared pages are mapped a second time.
  if (host == MAP_FAILED || mremap(host, 0, size, MREMAP_MAYMOVE | MREMAP_FIXED, pages.device) == MAP_FAILED ||
      mprotect(pages.device, size, PROT_NONE) != 0) {
    throw std::bad_alloc();
  }
  return pages;
}

// The block whose pages, or the forbidden page after them, hold this address; the mutex is held.
Block* block_of(uintptr_t address) {
  auto& blocks = registry().blocks;
  auto found = blocks.upper_bound(address);
  if (found == blocks.begin()) return nullptr;
  Block& block = (--found)->second;
  return address < found->first + block.pages.size + kPage ? &block : nullptr;
}

void refuse(uintptr_t address, const Block& block) {
  const auto byte = static_cast<long long>(address) -
                    static_cast<long long>(reinterpret_cast<uintptr_t>(block.pages.device)) -
                    static_cast<long long>(block.before);
  if (kernel != nullptr) die("%s: out of bounds: byte %lld of a block of %zu", kernel(), byte, block.bytes);
  ++counters().host_accesses;
  die("the host reads or writes byte %lld of a block of %zu on the device: a tensor on cuda is used as one on the cpu",
      byte, block.bytes);
}

// A first fault reads, until the next one says that it writes.
void open(const Pages& pages) {
  for (Opened& one : *opened) {
    if (one.pages.device != pages.device) continue;
    mprotect(pages.device, pages.size, PROT_READ | PROT_WRITE);
    one.written = true;
    return;
  }
  mprotect(pages.device, pages.size, PROT_READ);
  opened->push_back({pages, false});
}

void on_fault(int signal, siginfo_t* info, void* context) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  {
    const std::lock_guard lock(registry().mutex);
    if (const Block* block = block_of(address)) {
      const auto begin = reinterpret_cast<uintptr_t>(block->pages.device);
      if (kernel == nullptr || address >= begin + block->pages.size) refuse(address, *block);
      open(block->pages);
      return;
    }
  }
  refuse_early_touch(info->si_addr);
  // Not ours: as it would have been without us.
  if ((previous.sa_flags & SA_SIGINFO) != 0 && previous.sa_sigaction != nullptr) {
    previous.sa_sigaction(signal, info, context);
  } else {
    sigaction(SIGSEGV, &previous, nullptr);
  }
}

}  // namespace

void watch_faults() {
  static const bool once = [] {
    struct sigaction ours {};
    ours.sa_sigaction = on_fault;
    ours.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &ours, &previous);
    return true;
  }();
  (void)once;
}

namespace {

std::atomic<int64_t> peak{0};  // the one of the counters is the process's

// With the registry's mutex held.
void count(int64_t bytes) {
  const int64_t now = counters().bytes += bytes;
  if (now > peak) peak = now;
  if (now > counters().peak_bytes) counters().peak_bytes = now;
}

void check_beside(const Block& block) {
  const auto expect = [&](size_t from, size_t to) {
    for (size_t i = from; i < to; ++i) {
      if (static_cast<unsigned char>(block.pages.host[i]) == kBeside) continue;
      die("out of bounds: byte %lld of a block of %zu was written; seen when the block was freed",
          static_cast<long long>(i) - static_cast<long long>(block.before), block.bytes);
    }
  };
  expect(0, block.before);
  expect(block.before + block.bytes, block.pages.size);
}

}  // namespace

void die(const char* format, ...) {
  char text[512] = "fake cuda: ";
  const size_t start = std::strlen(text);
  va_list values;
  va_start(values, format);
  std::vsnprintf(text + start, sizeof text - start - 1, format, values);
  va_end(values);
  std::strcat(text, "\n");
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text, std::strlen(text));
  std::abort();
}

namespace {

Pages pages_for(size_t size, Stream home) {
  auto& free = registry().free[{size, home}];
  // A job may have these pages still; its stream may use them anew after it, but the host fills them now.
  if (!free.empty() && !idle(home)) return new_pages(size);
  for (auto one = free.rbegin(); one != free.rend(); ++one) {
    if (!one->uses.may_be_lent(one->bytes)) continue;
    const Pages pages = one->pages;
    free.erase(std::next(one).base());
    return pages;
  }
  return new_pages(size);
}

}  // namespace

void* allocate(size_t bytes, Stream home) {
  if (bytes == 0) return nullptr;
  watch_faults();
  const size_t aligned = (bytes + kAlignment - 1) / kAlignment * kAlignment,
               size = (aligned + kPage - 1) / kPage * kPage;
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  const Block block{
      pages_for(size, home), bytes, size - aligned, {.home = home, .written = {}, .read = {}, .recorded = {}}};
  std::memset(block.pages.host, kBeside, size);
  std::memset(block.pages.host + block.before, kFresh, bytes);
  all.blocks.emplace(reinterpret_cast<uintptr_t>(block.pages.device), block);
  count(static_cast<int64_t>(bytes));
  return block.pages.device + block.before;
}

void release(void* device) {
  if (device == nullptr) return;
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  const auto address = reinterpret_cast<uintptr_t>(device);
  const Block* found = block_of(address);
  if (found == nullptr) die("%p is freed, which is no block of the device", device);
  const Block block = *found;
  check_beside(block);
  if (!block.aside) count(-static_cast<int64_t>(block.bytes));
  all.blocks.erase(reinterpret_cast<uintptr_t>(block.pages.device));
  all.free[{block.pages.size, block.uses.home}].push_back(block);
}

namespace {

// With the registry's mutex held.
Block& known_block(const void* device) {
  Block* block = block_of(reinterpret_cast<uintptr_t>(device));
  if (block == nullptr) die("%p is no block of the device", device);
  return *block;
}

}  // namespace

void set_aside(void* device) {
  const std::lock_guard lock(registry().mutex);
  Block& block = known_block(device);
  check_beside(block);
  block.aside = true;
  count(-static_cast<int64_t>(block.bytes));
}

void take_back(void* device) {
  const std::lock_guard lock(registry().mutex);
  Block& block = known_block(device);
  block.aside = false;
  std::memset(block.pages.host + block.before, kFresh, block.bytes);
  count(static_cast<int64_t>(block.bytes));
}

void* host_address(const void* device) {
  if (device == nullptr) return nullptr;
  const std::lock_guard lock(registry().mutex);
  const Block* block = block_of(reinterpret_cast<uintptr_t>(device));
  if (block == nullptr) die("%p is no address of the device", device);
  return block->pages.host + (static_cast<const char*>(device) - block->pages.device);
}

bool is_device_address(const void* address) {
  const std::lock_guard lock(registry().mutex);
  return block_of(reinterpret_cast<uintptr_t>(address)) != nullptr;
}

int device_of_address(const void* device) {
  const std::lock_guard lock(registry().mutex);
  const Block* block = block_of(reinterpret_cast<uintptr_t>(device));
  return block == nullptr ? -1 : device_of(block->uses.home);
}

void use_block(const void* device, const Use& use, bool writes) {
  if (device == nullptr) return;
  const std::lock_guard lock(registry().mutex);
  Block* block = block_of(reinterpret_cast<uintptr_t>(device));
  if (block == nullptr) die("%s: %p is no address of the device", use.name, device);
  block->uses.add(use, writes, block->bytes);
}

void record_stream(const void* device, Stream stream) {
  if (device == nullptr) return;
  const std::lock_guard lock(registry().mutex);
  if (Block* block = block_of(reinterpret_cast<uintptr_t>(device))) block->uses.recorded.push_back(stream);
}

int64_t live_bytes() { return counters().bytes; }
int64_t peak_bytes() { return peak; }

void reset_peak() {
  const std::lock_guard lock(registry().mutex);
  peak = live_bytes();
}

KernelAccess::KernelAccess(const char* (*who)(), const Operation& operation) : operation_(operation) {
  static thread_local std::vector<Opened> pages;
  pages.reserve(64);
  opened = &pages;
  kernel = who;
}

KernelAccess::~KernelAccess() {
  kernel = nullptr;
  for (const auto& [pages, written] : *opened) {
    mprotect(pages.device, pages.size, PROT_NONE);
    written ? operation_.writes(pages.device) : operation_.reads(pages.device);
  }
  opened->clear();
}

}  // namespace limbeck::fake_cuda
