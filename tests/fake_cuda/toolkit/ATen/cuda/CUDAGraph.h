// In the place of libtorch_cuda's header. The memory of a graph is its own alone.
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
    TORCH_CHECK(pool == c10::MempoolId_t(0, 0) && mode != cudaStreamCaptureModeRelaxed,
                "the fake graphs have memory of their own, and no relaxed capture");
    graph_.begin(c10::cuda::getCurrentCUDAStream().number(), mode == cudaStreamCaptureModeThreadLocal);
  }
  void capture_end() { graph_.end(); }
  void replay() { graph_.replay(c10::cuda::getCurrentCUDAStream().number()); }

 private:
  limbeck::fake_cuda::Graph graph_;
};

}  // namespace at::cuda
