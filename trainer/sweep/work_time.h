// How long something took: by the clock on the wall, and in the time of this process's threads, which others that keep
// the machine busy do not lengthen. Work on a GPU shows in the first alone.
#pragma once
#include <chrono>
#include <ctime>

namespace limbeck::sweep {

struct WorkTime {
  double seconds = 0, processor = 0;
  WorkTime& operator+=(const WorkTime& more) {
    seconds += more.seconds, processor += more.processor;
    return *this;
  }
};

class WorkClock {
 public:
  WorkTime spent() const {
    return {std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(), now() - processor_};
  }

 private:
  static double now() {
    timespec time{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  }

  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  double processor_ = now();
};

}  // namespace limbeck::sweep
