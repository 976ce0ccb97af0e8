// In the place of libtorch_cuda's header.
#pragma once
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

#include <optional>

#include "fake_cuda/graph.h"

namespace at::cuda {

class CUDAEvent {
 public:
  explicit CUDAEvent(unsigned flags = cudaEventDisableTiming) : timed_((flags & cudaEventDisableTiming) == 0) {}

  void record(const c10::cuda::CUDAStream& stream) { moment_ = limbeck::fake_cuda::moment_of(stream.number()); }
  void block(const c10::cuda::CUDAStream& stream) const {
    if (moment_) limbeck::fake_cuda::make_wait(stream.number(), *moment_);
  }
  bool query() const {
    limbeck::fake_cuda::refuse_while_capturing("a question to an event");
    return !moment_ || limbeck::fake_cuda::passed(*moment_);
  }
  void synchronize() const {
    limbeck::fake_cuda::refuse_while_capturing("a wait for an event");
    if (moment_) limbeck::fake_cuda::make_host_wait(*moment_);
  }
  // Milliseconds.
  float elapsed_time(const CUDAEvent& later) const {
    TORCH_CHECK(moment_ && later.moment_, "Both events must be recorded before calculating elapsed time.");
    TORCH_CHECK(timed_ && later.timed_, "Both events must be created with argument 'enable_timing=True'.");
    TORCH_CHECK(query() && later.query(), "Both events must be completed before calculating elapsed time.");
    return static_cast<float>(limbeck::fake_cuda::milliseconds_between(*moment_, *later.moment_));
  }

 private:
  bool timed_;
  std::optional<limbeck::fake_cuda::Moment> moment_;
};

}  // namespace at::cuda
