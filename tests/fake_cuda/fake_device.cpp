#include "fake_cuda/fake_device.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/cuda/CUDAFunctions.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "fake_cuda/device_memory.h"

namespace c10::cuda {

DeviceIndex device_count() { return 1; }

}  // namespace c10::cuda

namespace limbeck::fake_cuda {
namespace {

const c10::Device kDevice(c10::kCUDA, 0);

void require_there_is(c10::Device device) {
  TORCH_CHECK(!device.has_index() || device.index() == 0, "CUDA error: invalid device ordinal: ", device);
}

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device device) const override {
    require_there_is(device);
    return kDevice;
  }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device device) const override { require_there_is(device); }
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
  c10::Stream getDefaultStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  // Everything is done when an event would be recorded.
  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {
    static int done;
    *event = &done;
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

class DeviceAllocator final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = fake_cuda::allocate(bytes);
    return {memory, memory, &release, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(host_address(to), host_address(from), bytes);
  }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override {
    c10::CachingDeviceAllocator::DeviceStats stats;
    auto& bytes = stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
    bytes.current = live_bytes(), bytes.peak = fake_cuda::peak_bytes();
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex) override { fake_cuda::reset_peak(); }
};

class PinnedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, c10::kCPU};
    void* memory = std::malloc(bytes);
    if (memory == nullptr) throw std::bad_alloc();
    const std::lock_guard lock(mutex_);
    blocks_.emplace(reinterpret_cast<uintptr_t>(memory), bytes);
    return {memory, memory, &drop, c10::kCPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &drop; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }

  bool holds(const void* address) {
    const auto at = reinterpret_cast<uintptr_t>(address);
    const std::lock_guard lock(mutex_);
    auto found = blocks_.upper_bound(at);
    return found != blocks_.begin() && at < (--found)->first + found->second;
  }

 private:
  static void drop(void* memory);

  std::mutex mutex_;
  std::map<uintptr_t, size_t> blocks_;
};

PinnedAllocator& pinned_allocator() {
  static auto& one = *new PinnedAllocator;
  return one;
}

void PinnedAllocator::drop(void* memory) {
  {
    const std::lock_guard lock(pinned_allocator().mutex_);
    pinned_allocator().blocks_.erase(reinterpret_cast<uintptr_t>(memory));
  }
  std::free(memory);
}

const bool kAllocatorSet = (c10::SetAllocator(c10::kCUDA, &device_allocator()), true);

}  // namespace

c10::Allocator& device_allocator() {
  static auto& one = *new DeviceAllocator;
  return one;
}

bool is_pinned(const void* address) { return pinned_allocator().holds(address); }

at::Tensor on_host(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cuda()) return tensor;
  const c10::StorageImpl& storage = *tensor.storage().unsafeGetStorageImpl();
  auto same = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), storage.nbytes(),
                                                    c10::DataPtr(host_address(storage.data()), c10::kCPU), nullptr,
                                                    /*resizable=*/false);
  auto result = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(std::move(same)),
                                                         c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  result.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return result;
}

}  // namespace limbeck::fake_cuda

namespace at {

class CUDAHooks final : public CUDAHooksInterface {
 public:
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex current_device() const override { return 0; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  void deviceSynchronize(DeviceIndex) const override {}
  const Generator& getDefaultGenerator(DeviceIndex) const override {
    static const Generator one = detail::createCPUGenerator();
    return one;
  }
  Allocator* getPinnedMemoryAllocator() const override { return &limbeck::fake_cuda::pinned_allocator(); }
  bool isPinnedPtr(const void* address) const override { return limbeck::fake_cuda::is_pinned(address); }
  Device getDeviceFromPtr(void* address) const override {
    TORCH_CHECK(limbeck::fake_cuda::is_device_address(address), "The pointer is none of the device");
    return limbeck::fake_cuda::kDevice;
  }
};

REGISTER_CUDA_HOOKS(CUDAHooks)

}  // namespace at
