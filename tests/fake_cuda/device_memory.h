// The memory of the fake device. Its addresses cannot be read or written, except by a kernel that runs: any other
// access ends the process with a message, and so does a kernel's outside of the block that it was given. Behind each
// address lies a second one of the same bytes, which the operators that stand in for ATen's use.
#pragma once
#include <cstddef>
#include <cstdint>

#include "fake_cuda/streams.h"

namespace limbeck::fake_cuda {

// 16 bytes aligned, filled with 0xff (NaN, and -1), the end as near to a forbidden page as that allows. What a stream
// frees is given to that stream alone again.
void* allocate(size_t bytes, Stream home = 0);
// What a write has left beside the block ends the process with a message.
void release(void* device);

// A block that nobody has for a while, and that is not given to others: it counts as free. Taken back it is as a fresh
// one.
void set_aside(void* device);
void take_back(void* device);

// The address behind a device address; nullptr for nullptr.
void* host_address(const void* device);
bool is_device_address(const void* address);
int device_of_address(const void* device);

// Nothing for nullptr. A use out of order ends the process with a message.
void use_block(const void* device, const Use& use, bool writes);
// The block is not given out again before this stream is done with it.
void record_stream(const void* device, Stream stream);

int64_t live_bytes();
int64_t peak_bytes();  // since the last reset_peak()
void reset_peak();

// While it lives, device addresses that this thread touches are opened; who runs there is for messages. At its end the
// blocks count as used by the operation.
class KernelAccess {
 public:
  KernelAccess(const char* (*who)(), const Operation& operation);
  ~KernelAccess();
  KernelAccess(const KernelAccess&) = delete;
  KernelAccess& operator=(const KernelAccess&) = delete;

 private:
  const Operation& operation_;
};

// From now on a touch of what must not be touched ends the process with a message.
void watch_faults();

// Says it on standard error, without allocating, and aborts.
[[noreturn]] void die(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace limbeck::fake_cuda
