#include "fake_cuda/fake_device.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/cuda/CUDAFunctions.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "fake_cuda/counters.h"
#include "fake_cuda/device_memory.h"
#include "fake_cuda/graph.h"
#include "fake_cuda/host_pages.h"

namespace c10::cuda {

DeviceIndex device_count() { return static_cast<DeviceIndex>(limbeck::fake_cuda::device_count()); }

}  // namespace c10::cuda

namespace limbeck::fake_cuda {
namespace {

c10::Device device_number(int device) { return {c10::kCUDA, static_cast<c10::DeviceIndex>(device)}; }

// The number of a device that there is; without one, the current one's.
int require_there_is(c10::Device device) {
  if (!device.has_index()) return current_device();
  TORCH_CHECK(device.index() < device_count(), "CUDA error: invalid device ordinal: ", device);
  return device.index();
}

void count_wait(const Moment& moment) {
  refuse_while_capturing("a wait of the host");
  ++counters().host_waits;
  make_host_wait(moment);
}

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device device) const override {
    return device_number(exchange_device(require_there_is(device)));
  }
  c10::Device getDevice() const override { return device_number(current_device()); }
  void setDevice(c10::Device device) const override { exchange_device(require_there_is(device)); }
  void uncheckedSetDevice(c10::Device device) const noexcept override { exchange_device(device.index()); }
  c10::Stream getStream(c10::Device device) const override {
    return torch_stream(current_stream(require_there_is(device)));
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return torch_stream(require_there_is(device)); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return torch_stream(new_stream(require_there_is(device)));
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    return torch_stream(exchange_stream(stream_of(stream)));
  }
  c10::DeviceIndex deviceCount() const noexcept override { return c10::cuda::device_count(); }
  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex, const c10::EventFlag) const override {
    if (*event == nullptr) *event = new Moment;
    *static_cast<Moment*>(*event) = moment_of(stream_of(stream));
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event != nullptr) make_wait(stream_of(stream), *static_cast<Moment*>(event));
  }
  bool queryEvent(void* event) const override {
    refuse_while_capturing("a question to an event");
    return event == nullptr || passed(*static_cast<Moment*>(event));
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override { delete static_cast<Moment*>(event); }
  bool queryStream(const c10::Stream& stream) const override { return passed(moment_of(stream_of(stream))); }
  void synchronizeStream(const c10::Stream& stream) const override { count_wait(moment_of(stream_of(stream))); }
  void synchronizeEvent(void* event) const override {
    if (event != nullptr) count_wait(*static_cast<Moment*>(event));
  }
  void synchronizeDevice(const c10::DeviceIndex device) const override { count_wait(moment_of_device(device)); }
  void recordDataPtrOnStream(const c10::DataPtr& memory, const c10::Stream& stream) const override {
    record_stream(memory.get(), stream_of(stream));
  }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

// Of a graph's memory, by a tensor.
struct Taken {
  std::shared_ptr<GraphMemory> from;
  void* device;
};

void give_back(void* one) {
  const std::unique_ptr<Taken> taken(static_cast<Taken*>(one));
  taken->from->give_back(taken->device);
}

class DeviceAllocator final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const int device = current_device();
    const Stream stream = current_stream(device);
    Graph* const graph = capturing(stream);
    if (graph == nullptr) refuse_while_capturing("memory that is not the graph's");
    if (graph == nullptr || bytes == 0) {
      void* memory = fake_cuda::allocate(bytes, stream);
      return {memory, memory, &release, device_number(device)};
    }
    auto* taken = new Taken{graph->memory(), graph->take(bytes, stream)};
    return {taken->device, taken, &give_back, device_number(device)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(host_address(to), host_address(from), bytes);
  }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr& memory, c10::Stream stream) override {
    record_stream(memory.get(), stream_of(stream));
  }
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

c10::Stream torch_stream(Stream stream) {
  return c10::Stream(c10::Stream::UNSAFE, device_number(device_of(stream)), stream / kMostDevices);
}

Stream stream_of(const c10::Stream& stream) {
  return static_cast<Stream>(stream.id()) * kMostDevices + stream.device_index();
}

Operation begin(const char* name, c10::Device device) {
  return {current_stream(device.has_index() ? device.index() : current_device()), name};
}

void give(const char* name, c10::Device device, std::vector<at::Tensor> read, std::vector<at::Tensor> written,
          std::function<void()> compute) {
  const Stream stream = current_stream(device.has_index() ? device.index() : current_device());
  for (std::vector<at::Tensor>* all : {&read, &written}) {
    for (at::Tensor& tensor : *all) tensor = place_of(tensor);
  }
  const auto run = [name, read = std::move(read), written = std::move(written),
                    compute = std::move(compute)](Stream now) {
    const Operation operation(now, name);
    for (const at::Tensor& tensor : read) reads(operation, tensor);
    for (const at::Tensor& tensor : written) writes(operation, tensor);
    compute();
  };
  Graph* const graph = capturing(stream);
  if (graph != nullptr) return graph->add(run);
  run(stream);
}

void reads(const Operation& operation, const at::Tensor& tensor) {
  if (tensor.defined() && tensor.is_cuda()) operation.reads(tensor.storage().data());
}

void writes(const Operation& operation, const at::Tensor& tensor) {
  if (tensor.defined() && tensor.is_cuda()) operation.writes(tensor.storage().data());
}

c10::Allocator& device_allocator() {
  static auto& one = *new DeviceAllocator;
  return one;
}

bool is_pinned(const void* address) { return pinned_allocator().holds(address) || is_registered(address); }

namespace {

// The same elements at another address, of memory that it does not keep.
at::Tensor over(void* memory, c10::Device device, c10::DispatchKey key, const at::Tensor& tensor) {
  auto storage = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), tensor.storage().nbytes(),
                                                       c10::DataPtr(memory, device), nullptr, /*resizable=*/false);
  auto result = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(std::move(storage)), c10::DispatchKeySet(key),
                                                         tensor.dtype());
  result.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  // Marks that a copy sees, as that of real CUDA does: what lies there stands for its conjugate, or its negative.
  result._set_conj(tensor.is_conj());
  result._set_neg(tensor.is_neg());
  return result;
}

}  // namespace

at::Tensor on_host(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cuda()) return tensor;
  return over(host_address(tensor.storage().data()), c10::kCPU, c10::DispatchKey::CPU, tensor);
}

at::Tensor place_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return tensor;
  if (!tensor.is_cuda()) return tensor.variable_data();
  return over(const_cast<void*>(tensor.storage().data()), tensor.device(), c10::DispatchKey::CUDA, tensor);
}

}  // namespace limbeck::fake_cuda

namespace at {

class CUDAHooks final : public CUDAHooksInterface {
 public:
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return c10::cuda::device_count() > 0; }
  DeviceIndex deviceCount() const override { return c10::cuda::device_count(); }
  int getNumGPUs() const override { return c10::cuda::device_count(); }
  DeviceIndex getCurrentDevice() const override { return current_device(); }
  DeviceIndex current_device() const override { return static_cast<DeviceIndex>(limbeck::fake_cuda::current_device()); }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  void deviceSynchronize(DeviceIndex device) const override {
    limbeck::fake_cuda::refuse_while_capturing("a wait of the host");
    limbeck::fake_cuda::make_host_wait(limbeck::fake_cuda::moment_of_device(device));
  }
  const Generator& getDefaultGenerator(DeviceIndex device) const override {
    static std::vector<Generator> all(limbeck::fake_cuda::kMostDevices);
    Generator& own = all.at(static_cast<size_t>(device < 0 ? current_device() : device));
    if (!own.defined()) own = detail::createCPUGenerator();
    return own;
  }
  Allocator* getPinnedMemoryAllocator() const override { return &limbeck::fake_cuda::pinned_allocator(); }
  bool isPinnedPtr(const void* address) const override { return limbeck::fake_cuda::is_pinned(address); }
  Device getDeviceFromPtr(void* address) const override {
    TORCH_CHECK(limbeck::fake_cuda::is_device_address(address), "The pointer is none of the device");
    return {kCUDA, static_cast<DeviceIndex>(limbeck::fake_cuda::device_of_address(address))};
  }
};

REGISTER_CUDA_HOOKS(CUDAHooks)

}  // namespace at
