#include <ATen/core/Tensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>

#include "trainer/data/data_source.h"

namespace limbeck::data {

struct Prefetcher::State {
  State(Make given, int64_t first, int64_t last, int ahead, c10::Device where)
      : make_batch(std::move(given)),
        device(where),
        next(first),
        end(last),
        depth(static_cast<size_t>(std::max(ahead, 0))) {
    if (depth > 0) thread = std::thread([this, first] { work(first); });
  }

  ~State() {
    {
      const std::lock_guard lock(mutex);
      stopped = true;
    }
    changed.notify_all();
    if (thread.joinable()) thread.join();
  }

  void work(int64_t index) {
    for (; index < end; ++index) {
      {
        std::unique_lock lock(mutex);
        changed.wait(lock, [this] { return stopped || ready.size() < depth; });
        if (stopped) return;
      }
      std::exception_ptr failure;
      Batch batch;
      try {
        batch = make(index);
      } catch (...) {
        failure = std::current_exception();
      }
      {
        const std::lock_guard lock(mutex);
        if (failure) {
          error = failure;
        } else {
          ready.push_back(std::move(batch));
        }
      }
      changed.notify_all();
      if (failure) return;
    }
  }

  // The batches made before the error come first: training stops at the same step whatever the depth.
  Batch take() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [this] { return !ready.empty() || error; });
    if (ready.empty()) std::rethrow_exception(error);
    Batch batch = std::move(ready.front());
    ready.pop_front();
    lock.unlock();
    changed.notify_all();
    return batch;
  }

  Batch make(int64_t index) const { return place(make_batch(index), device); }

  Make make_batch;
  c10::Device device;
  int64_t next, end;
  size_t depth;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Batch> ready;
  std::exception_ptr error;
  bool stopped = false;
  std::thread thread;  // last: it uses all of the above
};

Prefetcher::Prefetcher(Make make, int64_t begin, int64_t end, int depth, c10::Device device)
    : state_(std::make_unique<State>(std::move(make), begin, end, depth, device)) {}
Prefetcher::~Prefetcher() = default;

Batch Prefetcher::next() {
  if (state_->next >= state_->end) {
    throw std::out_of_range(fmt::format("Prefetcher: all batches up to {} were taken", state_->end));
  }
  Batch batch = state_->depth == 0 ? state_->make(state_->next) : state_->take();
  ++state_->next;
  return batch;
}

}  // namespace limbeck::data
