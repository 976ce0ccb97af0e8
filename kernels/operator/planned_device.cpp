#include "kernels/operator/planned_device.h"

#include <ATen/ops/empty.h>

#include <atomic>

namespace limbeck::kernels {
namespace {

std::atomic<c10::DeviceType>& planned() {
  static std::atomic<c10::DeviceType> device = c10::DeviceType::CPU;
  return device;
}

}  // namespace

c10::DeviceType planned_device() { return planned().load(std::memory_order_relaxed); }

void hold_for_a_moment(const at::Tensor& like, int64_t bytes) { at::empty({bytes}, like.options().dtype(at::kByte)); }

PlanFor::PlanFor(c10::DeviceType device) : before_(planned().exchange(device, std::memory_order_relaxed)) {}
PlanFor::~PlanFor() { planned().store(before_, std::memory_order_relaxed); }

}  // namespace limbeck::kernels
