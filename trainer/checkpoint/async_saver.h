// Saves while training goes on: start() copies what is to be saved into memory of its own and returns; one thread does
// the rest. One save at a time. What went wrong is kept until it is asked for and is never thrown on that thread.
// Ranks finish at different times: act on a report or an error only in a way that all ranks agreed on.
#pragma once
#include <ATen/core/Tensor.h>

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "trainer/checkpoint/saver.h"

namespace limbeck::checkpoint {

int64_t staged_bytes(const SaveRequest& request);  // of the copy that a save needs beside what it copies

class AsyncSaver {
 public:
  // ranks: a line of its own (Communicator::line), which nobody else uses while this lives. Every rank makes this and
  // calls start() in the same order.
  AsyncSaver(std::filesystem::path folder, parallel::Communicator& ranks, SaverOptions options = {});
  ~AsyncSaver();  // drains
  AsyncSaver(const AsyncSaver&) = delete;
  AsyncSaver& operator=(const AsyncSaver&) = delete;

  // Waits for the save in flight; the pieces may be on any device and may change as soon as this returns.
  void start(SaveRequest request);
  void drain();  // waits for the save in flight

  bool busy() const;
  std::optional<SaveReport> take_report();  // of a save that is done, oldest first; never blocks
  std::exception_ptr take_error();          // null: none; never blocks
  size_t staging_bytes() const { return static_cast<size_t>(staging_.defined() ? staging_.numel() : 0); }
  const void* staging_memory() const { return staging_.defined() ? staging_.const_data_ptr() : nullptr; }
  const Saver& saver() const { return saver_; }

 private:
  void make_room(int64_t bytes, c10::Device device);
  void stage(SaveRequest& request);
  void work();

  Saver saver_;
  at::Tensor staging_;           // bytes, reused; grows when a request is larger
  std::string staging_warning_;  // for the next report
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<SaveRequest> request_;  // waiting or in flight
  double stage_seconds_ = 0;
  bool leaving_ = false;
  std::deque<SaveReport> reports_;
  std::deque<std::exception_ptr> errors_;
  std::thread thread_;
};

}  // namespace limbeck::checkpoint
