#include "fake_cuda/streams.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <numeric>
#include <utility>

#include "fake_cuda/counters.h"
#include "fake_cuda/device_memory.h"
#include "fake_cuda/host_pages.h"

namespace limbeck::fake_cuda {
namespace {

using Clock = std::vector<uint64_t>;

struct Line {
  Clock clock;
  Jobs jobs;
};

struct Schedule {
  std::mutex mutex;
  std::vector<Line> lines = std::vector<Line>(kMostDevices);
  std::array<int, kMostDevices> made{};  // streams of each device beside its default one
  Clock host;                            // what a thread has stood still for, and so all that it tells
};

Schedule& schedule() {
  static auto& one = *new Schedule;
  return one;
}

thread_local int device = 0;
thread_local Clock asked;  // what this thread alone knows: it has asked, and nobody waited for the answer
thread_local bool launches = false;
thread_local auto current = [] {
  std::array<Stream, kMostDevices> all{};
  std::iota(all.begin(), all.end(), 0);
  return all;
}();

uint64_t at(const Clock& clock, Stream stream) {
  const auto place = static_cast<size_t>(stream);
  return place < clock.size() ? clock[place] : 0;
}

void join(Clock& clock, const Clock& other) {
  if (clock.size() < other.size()) clock.resize(other.size());
  for (size_t i = 0; i < other.size(); ++i) clock[i] = std::max(clock[i], other[i]);
}

void drop_finished(Jobs& jobs) {
  std::erase_if(jobs, [](const auto& job) { return job->finished(); });
}

Line& line_of(Stream stream) { return schedule().lines.at(static_cast<size_t>(stream)); }

// Whether what `stream` does next comes after `use`; the mutex is held.
bool follows(Stream stream, const Use& use) {
  return use.stream < 0 || use.stream == stream || at(line_of(stream).clock, use.stream) >= use.ticket ||
         at(schedule().host, use.stream) >= use.ticket || at(asked, use.stream) >= use.ticket;
}

void require_follows(const Use& later, const char* does, const Use& earlier, const char* did, size_t bytes) {
  if (follows(later.stream, earlier)) return;
  die("%s on stream %d %s a block of %zu bytes that %s on stream %d %s, and has not waited for it", later.name,
      later.stream, does, bytes, earlier.name, earlier.stream, did);
}

}  // namespace

int device_count() {
  static const int count = [] {
    const char* text = std::getenv("LIMBECK_FAKE_CUDA_DEVICES");
    return text == nullptr ? 1 : std::clamp(std::atoi(text), 0, kMostDevices);
  }();
  return count;
}

int compute_capability() {
  static const int capability = [] {
    const char* text = std::getenv("LIMBECK_FAKE_CUDA_CAPABILITY");
    return text == nullptr ? 90 : std::atoi(text);
  }();
  return capability;
}

Stream new_stream(int of) {
  Schedule& all = schedule();
  const std::lock_guard lock(all.mutex);
  const Stream made = of + kMostDevices * ++all.made.at(static_cast<size_t>(of));
  if (all.lines.size() <= static_cast<size_t>(made)) all.lines.resize(static_cast<size_t>(made) + 1);
  return made;
}

int current_device() { return device; }
int exchange_device(int other) { return std::exchange(device, other); }
Stream current_stream(int of) { return current.at(static_cast<size_t>(of)); }
Stream exchange_stream(Stream stream) {
  return std::exchange(current.at(static_cast<size_t>(device_of(stream))), stream);
}

void Job::finish() {
  const std::lock_guard lock(mutex_);
  if (finished_) return;
  finished_ = true;
  ended_ = std::chrono::steady_clock::now();
  changed_.notify_all();
}

bool Job::finished() const {
  const std::lock_guard lock(mutex_);
  return finished_;
}

bool Job::wait_for(std::chrono::milliseconds patience) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, patience, [&] { return finished_; });
}

TimePoint Job::ended() const {
  const std::lock_guard lock(mutex_);
  return ended_;
}

Moment moment_of(Stream stream) {
  const std::lock_guard lock(schedule().mutex);
  Line& line = line_of(stream);
  drop_finished(line.jobs);
  return {line.clock, line.jobs, std::chrono::steady_clock::now()};
}

Moment moment_of_device(int of) {
  const std::lock_guard lock(schedule().mutex);
  Moment all{{}, {}, std::chrono::steady_clock::now()};
  for (size_t i = static_cast<size_t>(of); i < schedule().lines.size(); i += kMostDevices) {
    const Line& line = schedule().lines[i];
    join(all.clock, line.clock);
    all.jobs.insert(all.jobs.end(), line.jobs.begin(), line.jobs.end());
  }
  return all;
}

void make_wait(Stream stream, const Moment& moment) {
  const std::lock_guard lock(schedule().mutex);
  Line& line = line_of(stream);
  join(line.clock, moment.clock);
  line.jobs.insert(line.jobs.end(), moment.jobs.begin(), moment.jobs.end());
  drop_finished(line.jobs);
}

bool idle(Stream stream) { return moment_of(stream).jobs.empty(); }

bool passed(const Moment& moment) {
  if (launches) ++counters().polls;
  for (const auto& job : moment.jobs) {
    if (!job->finished()) return false;
  }
  join(asked, moment.clock);
  if (launches) open_pages_waited_for();  // what a watch learns is known to it alone
  return true;
}

void make_host_wait(const Moment& moment) {
  for (const auto& job : moment.jobs) {
    while (!job->wait_for(std::chrono::seconds(1))) {
    }
  }
  {
    const std::lock_guard lock(schedule().mutex);
    join(schedule().host, moment.clock);
  }
  open_pages_waited_for();
}

bool host_follows(const Use& use) {
  const std::lock_guard lock(schedule().mutex);
  return at(schedule().host, use.stream) >= use.ticket || at(asked, use.stream) >= use.ticket;
}

double milliseconds_between(const Moment& from, const Moment& to) {
  const auto end = [](const Moment& moment) {
    TimePoint last = moment.recorded;
    for (const auto& job : moment.jobs) last = std::max(last, job->ended());
    return last;
  };
  return std::chrono::duration<double, std::milli>(end(to) - end(from)).count();
}

Jobs add_job(Stream stream, std::shared_ptr<Job> job) {
  const std::lock_guard lock(schedule().mutex);
  return std::exchange(line_of(stream).jobs, {std::move(job)});
}

void Uses::add(const Use& use, bool writes, size_t bytes) {
  const std::lock_guard lock(schedule().mutex);
  require_follows(use, writes ? "writes" : "reads", written, "writes", bytes);
  if (!writes) {
    std::erase_if(read, [&](const Use& other) { return other.stream == use.stream; });
    read.push_back(use);
    return;
  }
  for (const Use& other : read) require_follows(use, "writes", other, "reads", bytes);
  written = use;
  read.clear();
}

bool Uses::may_be_lent(size_t bytes) const {
  const std::lock_guard lock(schedule().mutex);
  std::vector<Use> all = read;
  all.push_back(written);
  for (const Use& use : all) {
    if (follows(home, use)) continue;
    if (std::find(recorded.begin(), recorded.end(), use.stream) != recorded.end()) return false;
    die("a block of %zu bytes of stream %d was freed and is given out anew while %s on stream %d may use it", bytes,
        home, use.name, use.stream);
  }
  return true;
}

Operation::Operation(Stream stream, const char* name) : Operation(stream, name, Later{}) {
  make_host_wait({{}, moment_of(stream).jobs, {}});
}

Operation::Operation(Stream stream, const char* name, Later) {
  launches = true;
  const std::lock_guard lock(schedule().mutex);
  Clock& clock = line_of(stream).clock;
  const auto place = static_cast<size_t>(stream);
  if (clock.size() <= place) clock.resize(place + 1);
  use_ = {stream, ++clock[place], name};
}

void Operation::reads(const void* device) const { use_block(device, use_, /*writes=*/false); }
void Operation::writes(const void* device) const { use_block(device, use_, /*writes=*/true); }

}  // namespace limbeck::fake_cuda
