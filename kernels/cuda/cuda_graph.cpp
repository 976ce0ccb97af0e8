// Plain symbol of liblimbeck_cuda.so, which trainer/session/step_graphs.cpp looks up.
#include <ATen/cuda/CUDAEvent.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <exception>

#include "kernels/operator/device_graph.h"

namespace limbeck::kernels {
namespace {

class CudaGraph final : public DeviceGraph {
 public:
  explicit CudaGraph(c10::Device device) : device_(device) {}

  void record(const std::function<void()>& work) override {
    const c10::cuda::CUDAGuard guard(device_);
    const auto own = c10::cuda::getCurrentCUDAStream();
    const auto aside =
        c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device_.index());  // the default one cannot
    join(own, aside);
    {
      const c10::cuda::CUDAStreamGuard stream(aside);
      // Other threads go on meanwhile: batches are placed, checkpoints written, events asked.
      graph_.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
      try {
        work();
      } catch (...) {
        give_up();
        throw;
      }
      graph_.capture_end();
    }
    join(aside, own);
  }

  void play() override {
    const c10::cuda::CUDAGuard guard(device_);
    graph_.replay();
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
  at::cuda::CUDAGraph graph_;
};

}  // namespace
}  // namespace limbeck::kernels

extern "C" limbeck::kernels::DeviceGraph* limbeck_cuda_new_graph(c10::Device device) {
  return new limbeck::kernels::CudaGraph(device);
}
