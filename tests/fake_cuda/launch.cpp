#include "fake_cuda/launch.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "fake_cuda/counters.h"
#include "fake_cuda/device_memory.h"
#include "fake_cuda/fiber.h"

limbeck::fake_cuda::Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace limbeck::fake_cuda {
namespace {

constexpr unsigned kWarp = 32, kMostThreads = 1024;
constexpr size_t kMostShared = 48 * 1024;

enum class State { kReady, kAtBarrier, kInExchange, kEnded };

struct Thread {
  Fiber* fiber = nullptr;  // from its begin to its end
  State state = State::kEnded;
  Index3 index;
  const char* file = "";
  int line = 0;
  unsigned mask = 0;
  int source = 0;
  uint64_t given = 0, got = 0;
};

uint64_t seed_of_environment() {
  const char* text = std::getenv("LIMBECK_FAKE_CUDA_SEED");
  return text == nullptr ? 0 : std::strtoull(text, nullptr, 10);
}

// One for the process: blocks of different launches never overlap, as on a device that is full.
class Device {
 public:
  void run(const Launch& launch, const Operation& operation, void (*thread)(const void*), const void* of);
  Thread& current() { return threads_[current_]; }
  unsigned current_number() const { return current_; }
  void wait(State state, const char* file, int line);
  [[noreturn]] void work();
  void* shared() const { return shared_; }
  const Launch& launch() const { return launch_; }
  void set_seed(uint64_t seed) { seed_ = seed, random_.seed(seed); }

  std::mutex mutex;
  std::string error;

 private:
  void run_block();
  void drive(unsigned warp);
  bool turn_to_next();
  Fiber* idle_fiber();
  bool finish_exchange(unsigned warp);
  bool finish_barrier();
  void shuffle(std::vector<unsigned>& order);
  unsigned lanes_of(unsigned warp) const { return std::min(kWarp, size_ - warp * kWarp); }

  Launch launch_;
  void (*thread_)(const void*) = nullptr;
  const void* of_ = nullptr;
  std::vector<Thread> threads_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;  // those of no thread
  Fiber driver_;
  std::vector<unsigned> warps_, lanes_;
  unsigned size_ = 0, current_ = 0, warp_ = 0, turn_ = 0;  // the next turn is that of lanes_[turn_] of warp_
  void* shared_ = nullptr;
  uint64_t seed_ = seed_of_environment();
  std::mt19937_64 random_{seed_};
};

Device& device() {
  static auto& one = *new Device;
  return one;
}

const char* who() {
  static char text[256];
  std::snprintf(text, sizeof text, "kernel %s, block (%u, %u), thread %u", device().launch().name, blockIdx.x,
                blockIdx.y, threadIdx.x);
  return text;
}

void enter() { device().work(); }

void Device::shuffle(std::vector<unsigned>& order) {
  std::iota(order.begin(), order.end(), 0u);
  if (seed_ != 0) std::shuffle(order.begin(), order.end(), random_);
}

// Makes the next thread of the warp that can go on the current one; false when none can.
bool Device::turn_to_next() {
  const unsigned lanes = lanes_of(warp_);
  while (turn_ < kWarp) {
    const unsigned lane = lanes_[turn_++];
    if (lane >= lanes || threads_[warp_ * kWarp + lane].state != State::kReady) continue;
    current_ = warp_ * kWarp + lane;
    threadIdx = current().index;
    return true;
  }
  return false;
}

Fiber* Device::idle_fiber() {
  if (idle_.empty()) return fibers_.emplace_back(std::make_unique<Fiber>(enter)).get();
  Fiber* const last = idle_.back();
  idle_.pop_back();
  return last;
}

// What a fiber does: it calls one thread after the other. Where a thread has to wait, the next one is called on another
// fiber; so threads that never wait take one stack, and no change of it.
void Device::work() {
  Fiber& self = *current().fiber;
  while (true) {
    thread_(of_);
    current().state = State::kEnded;
    current().fiber = nullptr;
    if (!turn_to_next()) {
      idle_.push_back(&self);
      self.switch_to(driver_);  // and back when it is some thread's again
    } else if (current().fiber == nullptr) {
      current().fiber = &self;
    } else {
      idle_.push_back(&self);
      self.switch_to(*current().fiber);
    }
  }
}

void Device::wait(State state, const char* file, int line) {
  Thread& self = current();
  self.state = state, self.file = file, self.line = line;
  Fiber* next = &driver_;
  if (turn_to_next()) {
    if (current().fiber == nullptr) current().fiber = idle_fiber();
    next = current().fiber;
  }
  self.fiber->switch_to(*next);
}

// Until every lane waits or has ended.
void Device::drive(unsigned warp) {
  warp_ = warp;
  do {
    shuffle(lanes_);
    turn_ = 0;
    if (!turn_to_next()) continue;
    if (current().fiber == nullptr) current().fiber = idle_fiber();
    driver_.switch_to(*current().fiber);
  } while (finish_exchange(warp));
}

// Gives the lanes that exchange what they asked for, when all of their mask are there.
bool Device::finish_exchange(unsigned warp) {
  Thread* const first = &threads_[warp * kWarp];
  bool any = false;
  for (unsigned lane = 0; lane < lanes_of(warp); ++lane) {
    Thread& one = first[lane];
    if (one.state != State::kInExchange) continue;
    const unsigned mask = one.mask;
    for (unsigned other = 0; other < kWarp; ++other) {
      if ((mask >> other & 1) == 0) continue;
      const bool there =
          other < lanes_of(warp) && first[other].state == State::kInExchange && first[other].mask == mask;
      if (!there || first[other].line != one.line) {
        current_ = warp * kWarp + lane, threadIdx = one.index;
        die("%s: the exchange at %s:%d names lane %u of its warp, which is not there", who(), one.file, one.line,
            other);
      }
    }
    if ((mask >> static_cast<unsigned>(one.source) & 1) == 0) {
      threadIdx = one.index;
      die("%s: the exchange at %s:%d takes from lane %d, which its mask does not name", who(), one.file, one.line,
          one.source);
    }
    for (unsigned other = 0; other < kWarp; ++other) {
      if ((mask >> other & 1) == 0) continue;
      first[other].got = first[first[other].source].given;
    }
    for (unsigned other = 0; other < kWarp; ++other) {
      if ((mask >> other & 1) != 0) first[other].state = State::kReady;
    }
    any = true;
  }
  return any;
}

// False when all threads have ended.
bool Device::finish_barrier() {
  const Thread* waits = nullptr;
  unsigned there = 0;
  for (unsigned i = 0; i < size_; ++i) {
    if (threads_[i].state != State::kAtBarrier) continue;
    ++there;
    if (waits == nullptr) waits = &threads_[i];
    if (threads_[i].line != waits->line ||
        (threads_[i].file != waits->file && std::strcmp(threads_[i].file, waits->file) != 0)) {
      threadIdx = threads_[i].index;
      die("%s: threads of one block wait at different barriers: %s:%d and %s:%d", who(), waits->file, waits->line,
          threads_[i].file, threads_[i].line);
    }
  }
  if (waits == nullptr) return false;
  if (there < size_) {
    threadIdx = waits->index;
    die("%s: the barrier at %s:%d was reached by %u of the block's %u threads", who(), waits->file, waits->line, there,
        size_);
  }
  for (unsigned i = 0; i < size_; ++i) threads_[i].state = State::kReady;
  return true;
}

void Device::run_block() {
  for (unsigned i = 0; i < size_; ++i) {
    Thread& thread = threads_[i];
    const Index3& b = launch_.block;
    thread.index = {i % b.x, i / b.x % b.y, i / b.x / b.y};
    thread.state = State::kReady;
  }
  do {
    shuffle(warps_);
    for (const unsigned warp : warps_) drive(warp);
  } while (finish_barrier());
}

void Device::run(const Launch& launch, const Operation& operation, void (*thread)(const void*), const void* of) {
  launch_ = launch, thread_ = thread, of_ = of;
  const Index3 &g = launch.grid, &b = launch.block;
  const auto threads = static_cast<uint64_t>(b.x) * b.y * b.z;
  if (threads == 0 || threads > kMostThreads || g.x == 0 || g.y == 0 || g.z == 0 || g.x > 0x7fffffffu || g.y > 65535 ||
      g.z > 65535 || launch.shared_bytes > kMostShared) {
    char text[256];
    std::snprintf(text, sizeof text, "%s: a grid of %u x %u x %u blocks of %u x %u x %u threads with %zu shared bytes",
                  launch.name, g.x, g.y, g.z, b.x, b.y, b.z, launch.shared_bytes);
    error = text;
    return;
  }
  if (!launch.replayed) ++counters().launches;
  size_ = static_cast<unsigned>(threads);
  if (threads_.size() < size_) threads_.resize(size_);
  warps_.resize((size_ + kWarp - 1) / kWarp);
  lanes_.resize(kWarp);
  gridDim = g, blockDim = b;
  // On the device, so that its end is guarded.
  shared_ = allocate(launch.shared_bytes, launch.stream);
  {
    const KernelAccess access(who, operation);
    const uint64_t blocks = static_cast<uint64_t>(g.x) * g.y * g.z, turned = seed_ == 0 ? 0 : random_() % blocks;
    for (uint64_t i = 0; i < blocks; ++i) {
      const uint64_t number = seed_ == 0 ? i : (blocks - 1 - i + turned) % blocks;
      blockIdx = {static_cast<unsigned>(number % g.x), static_cast<unsigned>(number / g.x % g.y),
                  static_cast<unsigned>(number / g.x / g.y)};
      run_block();
    }
  }
  release(shared_);
}

}  // namespace

void run_kernel(const Launch& launch, void (*thread)(const void* of), const void* of) {
  const Operation operation(launch.stream, launch.name);
  const std::lock_guard lock(device().mutex);
  device().run(launch, operation, thread, of);
}

void meet_block(const char* file, int line) { device().wait(State::kAtBarrier, file, line); }

uint64_t exchange(unsigned mask, uint64_t value, int source, const char* file, int line) {
  Thread& self = device().current();
  if ((mask >> lane() & 1) == 0) die("%s: the exchange at %s:%d is not for lane %d", who(), file, line, lane());
  self.mask = mask, self.source = source, self.given = value;
  device().wait(State::kInExchange, file, line);
  return self.got;
}

int lane() { return static_cast<int>(device().current_number() % kWarp); }

void* dynamic_shared() { return device().shared(); }

const char* take_launch_error() {
  static thread_local std::string taken;
  const std::lock_guard lock(device().mutex);
  if (device().error.empty()) return nullptr;
  taken = std::exchange(device().error, "");
  return taken.c_str();
}

void set_seed(uint64_t seed) {
  const std::lock_guard lock(device().mutex);
  device().set_seed(seed);
}

}  // namespace limbeck::fake_cuda
