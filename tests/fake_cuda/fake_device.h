// The fake devices as LibTorch sees them: cuda:0 and, with LIMBECK_FAKE_CUDA_DEVICES=N, more of them.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/Stream.h>

#include <functional>
#include <vector>

#include "fake_cuda/streams.h"

namespace limbeck::fake_cuda {

c10::Stream torch_stream(Stream stream);
Stream stream_of(const c10::Stream& stream);

// An operator on the current stream of the device, which uses these; tensors of the CPU are none of its business.
Operation begin(const char* name, c10::Device device);
void reads(const Operation& operation, const at::Tensor& tensor);
void writes(const Operation& operation, const at::Tensor& tensor);
// An operator whose results are there by now, on the current stream of the device: computed at once, or, where that is
// captured, in every replay.
void give(const char* name, c10::Device device, std::vector<at::Tensor> read, std::vector<at::Tensor> written,
          std::function<void()> compute);

c10::Allocator& device_allocator();
bool is_pinned(const void* address);

// The same memory as a tensor of the CPU; what is no tensor of the device comes back as it is.
at::Tensor on_host(const at::Tensor& tensor);
// Where it lies: the same elements, without what autograd knows and without keeping the memory of the device. What is
// recorded has its tensors so.
at::Tensor place_of(const at::Tensor& tensor);

}  // namespace limbeck::fake_cuda
