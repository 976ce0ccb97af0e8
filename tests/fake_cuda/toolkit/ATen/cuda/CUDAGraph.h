// In the place of libtorch_cuda's header. The memory of a graph is its own, or that of the pool that it is told.
#pragma once
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

#include "fake_cuda/graph.h"

enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal = 0,
  cudaStreamCaptureModeThreadLocal = 1,
  cudaStreamCaptureModeRelaxed = 2
};

namespace at::cuda {

class CUDAGraph {
 public:
  void capture_begin(c10::MempoolId_t pool = {0, 0}, cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal) {
    TORCH_CHECK(pool.second == 0 && mode != cudaStreamCaptureModeRelaxed,
                "the fake graphs share the pool of another graph, if any, and have no relaxed capture");
    graph_.begin(c10::cuda::getCurrentCUDAStream().number(), limbeck::fake_cuda::GraphMemory::of(pool.first),
                 mode == cudaStreamCaptureModeThreadLocal);
  }
  void capture_end() {
    graph_.end();
    ended_ = true;
  }
  c10::MempoolId_t pool() {
    TORCH_CHECK(ended_, "Called CUDAGraph::pool() without a preceding successful capture.");
    return {graph_.memory()->number(), 0};
  }
  void replay() { graph_.replay(c10::cuda::getCurrentCUDAStream().number()); }

 private:
  limbeck::fake_cuda::Graph graph_;
  bool ended_ = false;
};

}  // namespace at::cuda
