// Plain symbol of liblimbeck_cuda.so, which trainer/session/step_graphs.cpp looks up.
#include <ATen/cuda/CUDAEvent.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <exception>

#include "kernels/operator/device_graph.h"

namespace limbeck::kernels {
namespace {

class CudaGraph final : public DeviceGraph {
 public:
  CudaGraph(c10::Device device, const CudaGraph* neighbour)
      : device_(device),
        // The default stream cannot be recorded; and memory is given out again only to the stream that it came from.
        aside_(neighbour != nullptr ? neighbour->aside_
                                    : c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index())),
        pool_(neighbour != nullptr ? neighbour->pool_ : c10::MempoolId_t{0, 0}) {}

  void record(const std::function<void()>& work) override {
    const c10::cuda::CUDAGuard guard(device_);
    const auto own = c10::cuda::getCurrentCUDAStream();
    join(own, aside_);
    {
      const c10::cuda::CUDAStreamGuard stream(aside_);
      // Other threads go on meanwhile: batches are placed, checkpoints written, events asked.
      graph_.capture_begin(pool_, cudaStreamCaptureModeThreadLocal);
      try {
        work();
      } catch (...) {
        give_up();
        throw;
      }
      graph_.capture_end();
    }
    join(aside_, own);
    pool_ = graph_.pool();
    recorded_ = true;
  }

  void play() override {
    const c10::cuda::CUDAGuard guard(device_);
    graph_.replay();
  }

  int64_t held_bytes() const override {
    if (!recorded_) return 0;
    int64_t bytes = 0;
    for (const auto& segment : c10::cuda::CUDACachingAllocator::snapshot(pool_, /*include_traces=*/false).segments) {
      if (segment.owner_private_pool_id == pool_) bytes += static_cast<int64_t>(segment.total_size);
    }
    return bytes;
  }

 private:
  static void join(const c10::cuda::CUDAStream& earlier, const c10::cuda::CUDAStream& later) {
    at::cuda::CUDAEvent event;
    event.record(earlier);
    event.block(later);
  }

  // The stream is to be given back; what broke the capture says more than its end.
  void give_up() {
    try {
      graph_.capture_end();
    } catch (const std::exception&) {
    }
  }

  c10::Device device_;
  c10::cuda::CUDAStream aside_;
  c10::MempoolId_t pool_;
  bool recorded_ = false;
  at::cuda::CUDAGraph graph_;
};

}  // namespace
}  // namespace limbeck::kernels

extern "C" limbeck::kernels::DeviceGraph* limbeck_cuda_new_graph(c10::Device device,
                                                                 const limbeck::kernels::DeviceGraph* neighbour) {
  return new limbeck::kernels::CudaGraph(device, static_cast<const limbeck::kernels::CudaGraph*>(neighbour));
}
