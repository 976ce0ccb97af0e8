// What the fake device has been asked to do since the process began. With LIMBECK_FAKE_CUDA_COUNTERS=FILE the numbers
// stand in that file, in this order, as int64: they outlive a process that ends without a last word.
#pragma once
#include <atomic>
#include <cstdint>

namespace limbeck::fake_cuda {

struct Counters {
  std::atomic<int64_t> launches;    // kernels of ours
  std::atomic<int64_t> operators;   // of ATen, on device tensors
  std::atomic<int64_t> host_waits;  // what a real device would make the host wait for
  std::atomic<int64_t> bytes, peak_bytes;
  std::atomic<int64_t>
      unordered;               // operators of ATen that a real device sums up by atomics, in another order each time
  std::atomic<int64_t> polls;  // questions whether an event has passed, of threads that launch work
  std::atomic<int64_t> registered_bytes, most_registered_bytes;  // of host memory, by cudaHostRegister
  std::atomic<int64_t> graphs;         // replays; what is in them counts as neither launch nor operator
  std::atomic<int64_t> host_accesses;  // to the device's memory, outside of operators: the first one is the last
};
static_assert(sizeof(Counters) == 11 * sizeof(int64_t) && std::atomic<int64_t>::is_always_lock_free);

Counters& counters();

}  // namespace limbeck::fake_cuda
