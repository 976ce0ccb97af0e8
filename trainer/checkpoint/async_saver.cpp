#include "trainer/checkpoint/async_saver.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/format.h>

#include <chrono>
#include <utility>

#include "kernels/operator/rounded_up.h"
#include "modules/errors.h"
#include "modules/memory/page_locked.h"

namespace limbeck::checkpoint {
namespace {

constexpr int64_t kAlign = 64;  // of each piece: any dtype, whole cache lines

int64_t staged_bytes(const Piece& piece) {
  return kernels::rounded_up_quotient(static_cast<int64_t>(piece.data.nbytes()), kAlign) * kAlign;
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

void AsyncSaver::make_room(int64_t bytes, c10::Device device) {
  if (staging_.defined() && staging_.numel() >= bytes) return;
  staging_ = at::Tensor();  // the old one first, so that there are never two
  if (device.is_cpu()) {
    staging_ = at::empty({bytes}, at::TensorOptions(at::kCPU).dtype(at::kByte));
    return;
  }
  memory::PageLocked room = memory::page_locked(bytes, device);
  staging_ = std::move(room.bytes);
  if (room.fault.empty()) return;
  staging_warning_ = fmt::format(
      "checkpoints: {} bytes on the host for the copy of a save cannot be locked in memory ({}): the copy goes tensor "
      "by "
      "tensor through the driver's own buffers, at about a third of the speed, and training stands meanwhile; more "
      "free "
      "memory on this host, or fewer ranks on it, would change that",
      bytes, room.fault);
}

void AsyncSaver::stage(SaveRequest& request) {
  const at::NoGradGuard no_gradient;
  c10::Device device = at::kCPU;
  for (auto* pieces : {&request.model, &request.optimizer}) {
    for (const Piece& piece : *pieces) {
      if (!piece.data.defined()) throw ContractError("checkpoint: tensor \"" + piece.name + "\" is undefined");
      if (!piece.data.is_cpu()) device = piece.data.device();
    }
  }
  make_room(staged_bytes(request), device);
  int64_t at = 0;
  for (auto* pieces : {&request.model, &request.optimizer}) {
    for (Piece& piece : *pieces) {
      const auto own = static_cast<int64_t>(piece.data.nbytes());
      const int64_t room = staged_bytes(piece);
      at::Tensor copy = staging_.narrow(0, at, own).view(piece.data.scalar_type()).view(piece.data.sizes());
      copy.copy_(piece.data, /*non_blocking=*/true);
      piece.data = copy;
      at += room;
    }
  }
  // Once for all copies; the next update comes after them on the same stream.
  if (!device.is_cpu()) c10::impl::VirtualGuardImpl(device.type()).getStream(device).synchronize();
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
      if (!staging_warning_.empty()) report.warnings.push_back(std::exchange(staging_warning_, ""));
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
