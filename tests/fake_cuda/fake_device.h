// The fake device as LibTorch sees it: one device, cuda:0, with one stream on which everything is done at once.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>

namespace limbeck::fake_cuda {

c10::Allocator& device_allocator();
bool is_pinned(const void* address);

// The same memory as a tensor of the CPU; what is no tensor of the device comes back as it is.
at::Tensor on_host(const at::Tensor& tensor);

}  // namespace limbeck::fake_cuda
