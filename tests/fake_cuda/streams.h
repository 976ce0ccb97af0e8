// Streams and events of the fake devices, and the order that they give. Operators are computed where they are called,
// and only what is begun as a Job (a collective) ends later; but each use of a block of memory is held against what its
// stream has waited for: every stream and the host have a clock of the other streams, which events join. A use that no
// event, and no wait of the host, puts behind a use that it must follow ends the process with a message.
#pragma once
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace limbeck::fake_cuda {

inline constexpr int kMostDevices = 8;

// LIMBECK_FAKE_CUDA_DEVICES, or 1.
int device_count();
int compute_capability();  // of each: 90 for 9.0, or LIMBECK_FAKE_CUDA_CAPABILITY

// The default stream of device d is d; the others of it are d + kMostDevices, and so on.
using Stream = int;
Stream new_stream(int device);
inline int device_of(Stream stream) { return stream % kMostDevices; }

// Of the thread that asks.
int current_device();
int exchange_device(int device);
Stream current_stream(int device);
Stream exchange_stream(Stream stream);  // of its device; the one before

using TimePoint = std::chrono::steady_clock::time_point;

// Work of a stream that ends later, or never.
class Job {
 public:
  void finish();
  bool finished() const;
  bool wait_for(std::chrono::milliseconds patience) const;  // whether it is finished
  TimePoint ended() const;

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool finished_ = false;
  TimePoint ended_{};
};
using Jobs = std::vector<std::shared_ptr<Job>>;

// All that a stream has been given so far: what an event records.
struct Moment {
  std::vector<uint64_t> clock;
  Jobs jobs;
  TimePoint recorded{};
};
Moment moment_of(Stream stream);
Moment moment_of_device(int device);  // of all its streams
void make_wait(Stream stream, const Moment& moment);
bool idle(Stream stream);                   // nothing that it waits for is under way
bool passed(const Moment& moment);          // if so, this thread knows it from here on, and no other: nobody waited
void make_host_wait(const Moment& moment);  // then every thread knows it
double milliseconds_between(const Moment& from, const Moment& to);

// Adds a job; what the stream is given from here on waits for it. It has to wait itself for those that come back.
Jobs add_job(Stream stream, std::shared_ptr<Job> job);

struct Use {
  Stream stream = -1;
  uint64_t ticket = 0;
  const char* name = "";
};

bool host_follows(const Use& use);  // whether the host has waited for it

// Who has used a block of memory. The allocator gives it back to the stream that it came from.
struct Uses {
  Stream home = 0;
  Use written;
  std::vector<Use> read;  // since then
  std::vector<Stream> recorded;

  void add(const Use& use, bool writes, size_t bytes);
  // Whether the allocator may give the block to its stream once more; ends the process where it would, wrongly.
  bool may_be_lent(size_t bytes) const;
};

// One operator or kernel. It begins when everything that its stream waits for is done.
class Operation {
 public:
  Operation(Stream stream, const char* name);
  struct Later {};  // a job, which does the waiting
  Operation(Stream stream, const char* name, Later);
  void reads(const void* device) const;
  void writes(const void* device) const;
  const Use& use() const { return use_; }

 private:
  Use use_;
};

}  // namespace limbeck::fake_cuda
