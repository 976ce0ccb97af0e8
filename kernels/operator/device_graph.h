// What a device was given to do, recorded once and played again from the same addresses: a CUDA graph. Made by the
// library of the device (cuda_library.h), under the name below.
#pragma once
#include <c10/core/Device.h>

#include <cstdint>
#include <functional>

namespace limbeck::kernels {

class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
  // Runs `work` on this thread; what it gives to the device is recorded and not done. What the recorded operators make
  // lies in the same places at each play, as long as the graph is there. Throws where `work` waits for the device, or
  // reads from it; then the graph is of no use.
  virtual void record(const std::function<void()>& work) = 0;
  // After what the current stream was given before.
  virtual void play() = 0;
  // Of the device's memory, together with its neighbours; also where no tensor lies there now. 0 before record().
  virtual int64_t held_bytes() const = 0;
};

// A function of the device's library: of a device, with an index, a new graph that is the caller's. With a neighbour,
// which has been recorded and is still there, both have one memory: what a tensor of the neighbour's has left may be
// written by the new one, and the other way round. So they are played on one stream, and what one has made is read, or
// copied, before another one is played; then their order does not matter.
using NewDeviceGraph = DeviceGraph* (*)(c10::Device device, const DeviceGraph* neighbour);
inline constexpr const char* kNewDeviceGraph = "limbeck_cuda_new_graph";

}  // namespace limbeck::kernels
