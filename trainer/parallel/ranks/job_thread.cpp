#include "trainer/parallel/ranks/job_thread.h"

#include <utility>

namespace limbeck::parallel {
namespace {

using SteadyClock = std::chrono::steady_clock;
double since(SteadyClock::time_point begin) {
  return std::chrono::duration<double>(SteadyClock::now() - begin).count();
}

}  // namespace

struct JobThread::Job : Pending {
  Job(JobThread& of, std::function<void()> run) : owner(of), body(std::move(run)) {}

  void wait() override {
    std::unique_lock lock(owner.mutex_);
    if (!done) {
      const auto begin = SteadyClock::now();
      owner.changed_.wait(lock, [this] { return done; });
      owner.time_.waited_s += since(begin);
    }
    if (failure) std::rethrow_exception(failure);
  }

  JobThread& owner;
  std::function<void()> body;
  std::exception_ptr failure;
  bool done = false;
};

JobThread::~JobThread() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

std::shared_ptr<Pending> JobThread::add(std::function<void()> job) {
  auto added = std::make_shared<Job>(*this, std::move(job));
  {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(added);
  }
  changed_.notify_all();
  return added;
}

CommunicationTime JobThread::time() const {
  const std::lock_guard lock(mutex_);
  return time_;
}

void JobThread::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopped_ || !jobs_.empty(); });
    if (jobs_.empty()) return;
    const auto job = jobs_.front();
    jobs_.pop_front();
    lock.unlock();
    const auto begin = SteadyClock::now();
    try {
      if (!failure_) job->body();
    } catch (...) {
      failure_ = std::current_exception();
    }
    job->body = nullptr;  // what it holds is freed here, before anybody goes on
    lock.lock();
    job->failure = failure_;
    job->done = true;
    time_.running_s += since(begin);
    changed_.notify_all();
  }
}

}  // namespace limbeck::parallel
