// Tensors on meta are on no device, but a memory plan made of them is for one, and bodies differ in what they allocate
// beside their results: the Meta kernels allocate what those of the planned device would.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace limbeck::kernels {

c10::DeviceType planned_device();  // the CPU, where nobody plans

// So many bytes more at the peak of a plan, on the device of `like`.
void hold_for_a_moment(const at::Tensor& like, int64_t bytes);

// Of the whole process while it lives: a backward may run on another thread.
class PlanFor {
 public:
  explicit PlanFor(c10::DeviceType device);
  ~PlanFor();
  PlanFor(const PlanFor&) = delete;
  PlanFor& operator=(const PlanFor&) = delete;

 private:
  c10::DeviceType before_;
};

}  // namespace limbeck::kernels
