// What a device was given to do, recorded once and played again from the same addresses: a CUDA graph. Made by the
// library of the device (cuda_library.h), under the name below.
#pragma once
#include <c10/core/Device.h>

#include <functional>

namespace limbeck::kernels {

class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
  // Runs `work` on this thread; what it gives to the device is recorded and not done. What the recorded operators made
  // stays where it is as long as the graph. Throws where `work` waits for the device, or reads from it; then the graph
  // is of no use.
  virtual void record(const std::function<void()>& work) = 0;
  // After what the current stream was given before.
  virtual void play() = 0;
};

// A function of the device's library: of a device, with an index, a new graph that is the caller's.
using NewDeviceGraph = DeviceGraph* (*)(c10::Device device);
inline constexpr const char* kNewDeviceGraph = "limbeck_cuda_new_graph";

}  // namespace limbeck::kernels
