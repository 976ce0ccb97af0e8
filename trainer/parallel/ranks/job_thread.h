// A thread that runs jobs one after another in the order they came: the operations of one line between ranks, which
// must meet in the same order everywhere. What a job throws is thrown by the wait for it and by all later ones: the
// ranks are out of step then, and the jobs behind it would only wait for their own timeouts.
#pragma once
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "trainer/parallel/communicator.h"

namespace limbeck::parallel {

class JobThread {
 public:
  JobThread() : thread_([this] { work(); }) {}
  ~JobThread();  // runs what is queued first, unless a job failed
  JobThread(const JobThread&) = delete;
  JobThread& operator=(const JobThread&) = delete;

  std::shared_ptr<Pending> add(std::function<void()> job);
  CommunicationTime time() const;

 private:
  struct Job;
  void work();

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Job>> jobs_;
  CommunicationTime time_;
  std::exception_ptr failure_;  // the first
  bool stopped_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace limbeck::parallel
