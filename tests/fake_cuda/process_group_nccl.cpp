#include <ATen/core/grad_mode.h>
#include <ATen/ops/clone.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#include <utility>

#include "fake_cuda/device_memory.h"
#include "fake_cuda/fake_device.h"

namespace c10d {
namespace {

using limbeck::fake_cuda::Job;
using limbeck::fake_cuda::Jobs;
using limbeck::fake_cuda::Moment;
using limbeck::fake_cuda::on_host;

constexpr auto kNap = std::chrono::microseconds(50);
constexpr auto kGoodbye = std::chrono::seconds(10);
constexpr auto kPatience = std::chrono::milliseconds(10);

// The group was aborted while it waited for a partner.
struct Aborted {};

// Whether this operation is the one of the process that LIMBECK_FAKE_CUDA_BROKEN_COLLECTIVE=N breaks, counted from 1.
bool breaks_now() {
  static const char* text = std::getenv("LIMBECK_FAKE_CUDA_BROKEN_COLLECTIVE");
  static std::atomic<int> begun = 0;
  return text != nullptr && ++begun == std::atoi(text);
}

struct Trace {
  std::mutex mutex;
  std::deque<std::string> names;
};

Trace& trace() {
  static auto& one = *new Trace;
  return one;
}

void note(const std::string& name) {
  constexpr size_t kKept = 2000;
  const std::lock_guard lock(trace().mutex);
  trace().names.push_back(fmt::format("\"{}\"", name));
  if (trace().names.size() > kKept) trace().names.pop_front();
}

void check(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.is_cuda() && tensor.is_contiguous(), "Tensors must be CUDA and dense, and contiguous");
}

}  // namespace

ProcessGroupNCCL::WorkNCCL::WorkNCCL(Moment end, c10::DeviceIndex device, bool broken, std::vector<at::Tensor> outputs)
    : end_(std::move(end)), device_(device), broken_(broken), outputs_(std::move(outputs)) {}
ProcessGroupNCCL::WorkNCCL::WorkNCCL(const WorkNCCL& other)
    : Work(), end_(other.end_), device_(other.device_), broken_(other.broken_) {}
bool ProcessGroupNCCL::WorkNCCL::isCompleted() { return broken_ || limbeck::fake_cuda::passed(end_); }
std::exception_ptr ProcessGroupNCCL::WorkNCCL::exception() const {
  if (!broken_) return nullptr;
  return std::make_exception_ptr(std::runtime_error("NCCL error: remote process exited or there was a network error"));
}
void ProcessGroupNCCL::WorkNCCL::synchronize() {
  limbeck::fake_cuda::make_wait(limbeck::fake_cuda::current_stream(device_), end_);
}
bool ProcessGroupNCCL::WorkNCCL::wait(std::chrono::milliseconds) {
  synchronize();
  return true;
}

// The thread of a group, and what it says to the store.
class ProcessGroupNCCL::Exchange {
 public:
  Exchange(c10::intrusive_ptr<Store> store, int rank) : store_(std::move(store)), rank_(rank) {}

  void add(Jobs before, std::shared_ptr<Job> job, std::function<void()> body) {
    const std::lock_guard lock(mutex_);
    if (aborted_) return job->finish();
    queue_.push_back({std::move(before), std::move(job), std::move(body)});
    changed_.notify_all();
  }

  static void serve(const std::shared_ptr<Exchange>& self) {
    for (std::optional<Entry> entry = self->next(); entry; entry = self->next()) {
      try {
        for (const auto& job : entry->before) {
          while (!job->wait_for(kPatience)) self->refuse_aborted();
        }
        entry->body();
        self->refuse_aborted();
      } catch (const Aborted&) {
      }
      entry->job->finish();
    }
  }

  void post(int to, const at::Tensor& host) {
    std::vector<uint8_t> bytes(host.nbytes());
    if (!bytes.empty()) std::memcpy(bytes.data(), host.const_data_ptr(), bytes.size());
    const std::string key = fmt::format("{}>{}/{}", rank_, to, sent_[to]++);
    ask([&] { store_->set(key, bytes); });
  }

  void take(int from, at::Tensor& host) {
    const std::string key = fmt::format("{}>{}/{}", from, rank_, taken_[from]++);
    bool there = false;
    for (int asked = 0; !there; ++asked) {
      if (asked > 0) std::this_thread::sleep_for(kNap);
      ask([&] { there = store_->check({key}); });
    }
    std::vector<uint8_t> bytes;
    ask([&] {
      bytes = store_->get(key);
      store_->deleteKey(key);
    });
    if (bytes.size() != host.nbytes()) {
      limbeck::fake_cuda::die("NCCL: rank %d sends %zu bytes, and rank %d wants %zu: real NCCL would stand still", from,
                              bytes.size(), rank_, host.nbytes());
    }
    if (!bytes.empty()) std::memcpy(host.mutable_data_ptr(), bytes.data(), bytes.size());
  }

  at::Tensor summed(const at::Tensor& own, int size);

  void never_end() const {
    for (;; std::this_thread::sleep_for(kPatience)) refuse_aborted();
  }

  // A send ends when it is received.
  void await_taken(int to) {
    const std::string key = fmt::format("{}>{}/{}", rank_, to, sent_[to] - 1);
    for (bool there = true; there; std::this_thread::sleep_for(kNap)) {
      ask([&] { there = store_->check({key}); });
    }
  }

  // Once all have come: the store may go with the first of them that leaves.
  void leave_together(int size) {
    const auto end = std::chrono::steady_clock::now() + kGoodbye;
    try {
      for (int64_t left = store_->add("left", 1); left < size && std::chrono::steady_clock::now() < end;
           left = store_->add("left", 0)) {
        std::this_thread::sleep_for(kNap);
      }
    } catch (const std::exception&) {
      // It has gone: all have come.
    }
  }

  // The thread may stand in a call to a store that is gone: it is left behind.
  void abort() {
    aborted_ = true;
    end();
    const std::lock_guard lock(mutex_);
    for (const Entry& entry : queue_) entry.job->finish();
    if (running_) running_->finish();
    queue_.clear();
  }

  void end() {
    const std::lock_guard lock(mutex_);
    ends_ = true;
    changed_.notify_all();
  }

  void await_idle() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return queue_.empty() && running_ == nullptr; });
  }

 private:
  struct Entry {
    Jobs before;
    std::shared_ptr<Job> job;
    std::function<void()> body;
  };

  std::optional<Entry> next() {
    std::unique_lock lock(mutex_);
    running_ = nullptr;
    changed_.notify_all();
    changed_.wait(lock, [&] { return ends_ || !queue_.empty(); });
    if (queue_.empty()) return std::nullopt;
    Entry first = std::move(queue_.front());
    queue_.pop_front();
    running_ = first.job;
    return first;
  }

  void refuse_aborted() const {
    if (aborted_) throw Aborted();
  }

  // With the store, the partner is gone: nothing comes any more.
  void ask(const std::function<void()>& question) const {
    refuse_aborted();
    try {
      question();
    } catch (const std::exception&) {
      never_end();
    }
  }

  c10::intrusive_ptr<Store> store_;
  int rank_;
  std::map<int, int64_t> sent_, taken_;  // by partner; of the thread alone
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Entry> queue_;
  std::shared_ptr<Job> running_;
  bool ends_ = false;
  std::atomic<bool> aborted_{false};
};

// In the order of the ranks, so that all have the same bits.
at::Tensor ProcessGroupNCCL::Exchange::summed(const at::Tensor& own, int size) {
  at::Tensor sum;
  for (int other = 0; other < size; ++other) {
    at::Tensor term = own.clone();
    if (other != rank_) take(other, term);
    if (other == 0)
      sum = term;
    else
      sum.add_(term);
  }
  return sum;
}

c10::intrusive_ptr<ProcessGroupNCCL::Options> ProcessGroupNCCL::Options::create(bool is_high_priority_stream) {
  auto made = c10::make_intrusive<Options>();
  made->is_high_priority_stream = is_high_priority_stream;
  return made;
}

ProcessGroupNCCL::ProcessGroupNCCL(c10::intrusive_ptr<Store> store, int rank, int size, c10::intrusive_ptr<Options>)
    : exchange_(std::make_shared<Exchange>(store->clone(), rank)), rank_(rank), size_(size) {
  std::thread([shared = exchange_] { Exchange::serve(shared); }).detach();
}

ProcessGroupNCCL::~ProcessGroupNCCL() { exchange_->abort(); }

void ProcessGroupNCCL::abort() { exchange_->abort(); }

void ProcessGroupNCCL::shutdown() {
  exchange_->await_idle();
  exchange_->leave_together(size_);
  exchange_->end();
}

limbeck::fake_cuda::Stream ProcessGroupNCCL::stream_for(const at::Tensor& tensor) {
  if (!stream_) stream_ = limbeck::fake_cuda::new_stream(tensor.device().index());
  TORCH_CHECK(limbeck::fake_cuda::device_of(*stream_) == tensor.device().index(),
              "a tensor on another device than the group's first: ", tensor.device());
  return *stream_;
}

c10::intrusive_ptr<Work> ProcessGroupNCCL::queue(const char* name, Tensors read, Tensors written, Body body) {
  namespace fake = limbeck::fake_cuda;
  const at::Tensor& any = read.empty() ? written.at(0) : read[0];
  const c10::DeviceIndex device = any.device().index();
  const fake::Stream own = stream_for(any);
  fake::make_wait(own, fake::moment_of(fake::current_stream(device)));
  const fake::Operation operation(own, name, fake::Operation::Later{});
  const Tensors outputs = written;
  // The memory alone goes to the thread: who keeps it is the caller.
  for (at::Tensor& one : read) {
    check(one);
    fake::reads(operation, one);
    one = on_host(one);
  }
  for (at::Tensor& one : written) {
    check(one);
    fake::writes(operation, one);
    one = on_host(one);
  }
  auto job = std::make_shared<Job>();
  Jobs before = fake::add_job(own, job);
  note(name);
  const bool broken = breaks_now();
  exchange_->add(std::move(before), job, [shared = exchange_.get(), read, written, body, broken]() mutable {
    const at::NoGradGuard no_gradient;
    if (broken) shared->never_end();
    body(*shared, read, written);
  });
  return c10::make_intrusive<WorkNCCL>(fake::moment_of(own), device, broken, outputs);
}

c10::intrusive_ptr<Work> ProcessGroupNCCL::_allgather_base(at::Tensor& whole, at::Tensor& shard) {
  TORCH_CHECK(whole.scalar_type() == shard.scalar_type() && whole.numel() == shard.numel() * size_,
              "output tensor size must be equal to world_size times input tensor size");
  return queue("all_gather", {shard}, {whole},
               [this_rank = rank_, size = size_](Exchange& ranks, const Tensors& read, Tensors& written) {
                 const int64_t length = read[0].numel();
                 for (int other = 0; other < size; ++other) {
                   if (other != this_rank) ranks.post(other, read[0]);
                 }
                 for (int other = 0; other < size; ++other) {
                   at::Tensor part = written[0].view({size, length}).select(0, other);
                   if (other != this_rank)
                     ranks.take(other, part);
                   else if (part.const_data_ptr() != read[0].const_data_ptr())
                     part.copy_(read[0].view({length}));
                 }
               });
}

c10::intrusive_ptr<Work> ProcessGroupNCCL::_reduce_scatter_base(at::Tensor& shard, at::Tensor& whole) {
  TORCH_CHECK(whole.scalar_type() == shard.scalar_type() && whole.numel() == shard.numel() * size_,
              "input tensor must be the same size as output size times world size");
  return queue("reduce_scatter", {whole}, {shard},
               [this_rank = rank_, size = size_](Exchange& ranks, const Tensors& read, Tensors& written) {
                 const at::Tensor parts = read[0].view({size, written[0].numel()});
                 for (int other = 0; other < size; ++other) {
                   if (other != this_rank) ranks.post(other, parts.select(0, other));
                 }
                 written[0].copy_(ranks.summed(parts.select(0, this_rank), size).view_as(written[0]));
               });
}

c10::intrusive_ptr<Work> ProcessGroupNCCL::allreduce(std::vector<at::Tensor>& tensors) {
  return queue("all_reduce", {}, {tensors.at(0)},
               [this_rank = rank_, size = size_](Exchange& ranks, const Tensors&, Tensors& written) {
                 for (int other = 0; other < size; ++other) {
                   if (other != this_rank) ranks.post(other, written[0]);
                 }
                 written[0].copy_(ranks.summed(written[0], size));
               });
}

c10::intrusive_ptr<Work> ProcessGroupNCCL::send(std::vector<at::Tensor>& tensors, int to, int) {
  sends_.push_back({to, tensors.at(0)});
  return grouped_ ? nullptr : point_to_point();
}

c10::intrusive_ptr<Work> ProcessGroupNCCL::recv(std::vector<at::Tensor>& tensors, int from, int) {
  receives_.push_back({from, tensors.at(0)});
  return grouped_ ? nullptr : point_to_point();
}

void ProcessGroupNCCL::startCoalescing() { grouped_ = true; }

c10::intrusive_ptr<Work> ProcessGroupNCCL::endCoalescing() {
  grouped_ = false;
  return sends_.empty() && receives_.empty() ? nullptr : point_to_point();
}

// Everything of a group is sent before something is received, and what is sent ends when it has come.
c10::intrusive_ptr<Work> ProcessGroupNCCL::point_to_point() {
  Tensors read, written;
  std::vector<int> to, from;
  for (const Message& one : std::exchange(sends_, {})) read.push_back(one.tensor), to.push_back(one.partner);
  for (const Message& one : std::exchange(receives_, {})) written.push_back(one.tensor), from.push_back(one.partner);
  return queue("send and recv", read, written, [to, from](Exchange& ranks, const Tensors& out, Tensors& in) {
    for (size_t i = 0; i < to.size(); ++i) ranks.post(to[i], out[i]);
    for (size_t i = 0; i < from.size(); ++i) ranks.take(from[i], in[i]);
    for (const int partner : to) ranks.await_taken(partner);
  });
}

std::string dump_nccl_trace_json(bool, bool) {
  const std::lock_guard lock(trace().mutex);
  return fmt::format("{{\"entries\": [{}]}}", fmt::join(trace().names, ", "));
}

}  // namespace c10d
