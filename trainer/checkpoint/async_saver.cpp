#include "trainer/checkpoint/async_saver.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <chrono>
#include <utility>

#include "modules/errors.h"

namespace limbeck::checkpoint {
namespace {

constexpr int64_t kAlign = 64;  // of each piece: any dtype, whole cache lines

int64_t staged_bytes(const Piece& piece) {
  const auto bytes = static_cast<int64_t>(piece.data.nbytes());
  return (bytes + kAlign - 1) / kAlign * kAlign;
}

}  // namespace

int64_t staged_bytes(const SaveRequest& request) {
  int64_t bytes = 0;
  for (const auto* pieces : {&request.model, &request.optimizer}) {
    for (const Piece& piece : *pieces) bytes += staged_bytes(piece);
  }
  return bytes;
}

AsyncSaver::AsyncSaver(std::filesystem::path folder, parallel::Communicator& ranks, SaverOptions options)
    : saver_(std::move(folder), ranks, options), thread_([this] { work(); }) {}

AsyncSaver::~AsyncSaver() {
  drain();
  {
    const std::lock_guard lock(mutex_);
    leaving_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void AsyncSaver::stage(SaveRequest& request) {
  const at::NoGradGuard no_gradient;
  bool on_device = false;
  for (auto* pieces : {&request.model, &request.optimizer}) {
    for (const Piece& piece : *pieces) {
      if (!piece.data.defined()) throw ContractError("checkpoint: tensor \"" + piece.name + "\" is undefined");
      on_device = on_device || !piece.data.is_cpu();
    }
  }
  const int64_t bytes = staged_bytes(request);
  if (!staging_.defined() || staging_.numel() < bytes) {
    staging_ = at::Tensor();  // the old one first, so that there are never two
    // Pinned for a device: the copy then runs at the speed of the bus.
    staging_ = at::empty({bytes}, at::TensorOptions(at::kCPU).dtype(at::kByte).pinned_memory(on_device));
  }
  int64_t at = 0;
  for (auto* pieces : {&request.model, &request.optimizer}) {
    for (Piece& piece : *pieces) {
      const auto own = static_cast<int64_t>(piece.data.nbytes());
      at::Tensor copy = staging_.narrow(0, at, own).view(piece.data.scalar_type()).view(piece.data.sizes());
      copy.copy_(piece.data);
      piece.data = copy;
      at += (own + kAlign - 1) / kAlign * kAlign;
    }
  }
}

void AsyncSaver::start(SaveRequest request) {
  drain();
  const auto begin = std::chrono::steady_clock::now();
  stage(request);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  {
    const std::lock_guard lock(mutex_);
    stage_seconds_ = seconds.count();
    request_ = std::move(request);
  }
  changed_.notify_all();
}

void AsyncSaver::drain() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !request_; });
}

bool AsyncSaver::busy() const {
  const std::lock_guard lock(mutex_);
  return request_.has_value();
}

std::optional<SaveReport> AsyncSaver::take_report() {
  const std::lock_guard lock(mutex_);
  if (reports_.empty()) return std::nullopt;
  SaveReport report = std::move(reports_.front());
  reports_.pop_front();
  return report;
}

std::exception_ptr AsyncSaver::take_error() {
  const std::lock_guard lock(mutex_);
  if (errors_.empty()) return nullptr;
  std::exception_ptr error = errors_.front();
  errors_.pop_front();
  return error;
}

void AsyncSaver::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return request_ || leaving_; });
    if (!request_) return;
    // Nobody touches a request in flight: start() waits until it is gone.
    lock.unlock();
    SaveReport report;
    std::exception_ptr error;
    try {
      report = saver_.save(*request_);
      report.stage_seconds = stage_seconds_;
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error) {
      errors_.push_back(error);
    } else {
      reports_.push_back(std::move(report));
    }
    request_.reset();
    changed_.notify_all();
  }
}

}  // namespace limbeck::checkpoint
