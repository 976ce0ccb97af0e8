// ATen's operators under the CUDA key: they compute by the CPU's kernels on copies, and refuse what real CUDA refuses:
// tensors of both devices in one call, and a generator of the CPU. Views, copies and what has no kernel on the CPU
// stand here by themselves.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorShape.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/Backtrace.h>
#include <c10/util/ParallelGuard.h>
#include <torch/library.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "fake_cuda/counters.h"
#include "fake_cuda/device_memory.h"
#include "fake_cuda/fake_device.h"
#include "fake_cuda/graph.h"
#include "fake_cuda/host_pages.h"

namespace limbeck::fake_cuda {
namespace {

using at::Tensor;

// Real CUDA takes indices of the CPU here.
const std::set<std::string> kTakeCpuIndices = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"};
// The size of the result, or the result itself, is for the host.
const std::set<std::string> kMakeTheHostWait = {"aten::nonzero",    "aten::masked_select",     "aten::_unique2",
                                                "aten::equal",      "aten::bincount",          "aten::unique_dim",
                                                "aten::is_nonzero", "aten::repeat_interleave", "aten::histc"};
// They add to where an index says, by atomics: in another order each time where two go to one place.
const std::set<std::string> kAddByIndex = {"aten::index_add_", "aten::index_add.out", "aten::scatter_add_",
                                           "aten::scatter_add.out"};

void for_each_tensor(const c10::IValue& value, const std::function<void(const Tensor&)>& see) {
  if (value.isTensor()) {
    see(value.toTensor());
  } else if (value.isTensorList()) {
    for (const Tensor& t : value.toTensorVector()) see(t);
  } else if (value.isOptionalTensorList()) {
    for (const std::optional<Tensor>& t : value.toOptionalTensorVector()) see(t.value_or(Tensor()));
  }
}

// The device of the operator.
c10::Device check_devices(const c10::OperatorHandle& op, const torch::jit::Stack& stack) {
  const auto count = op.schema().arguments().size();
  std::optional<c10::Device> device;
  const auto see = [&](const Tensor& t) {
    if (t.defined() && t.is_cuda()) {
      TORCH_CHECK(!device || *device == t.device(),
                  "Expected all tensors to be on the same device, but found at least two devices, ", *device, " and ",
                  t.device(), "! (when checking arguments of ", op.schema().name(), ")");
      device = t.device();
    }
    TORCH_CHECK(!t.defined() || t.is_cuda() || t.dim() == 0 || kTakeCpuIndices.contains(op.schema().name()),
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and ",
                t.device(), "! (when checking arguments of ", op.schema().name(), ")");
  };
  for (const auto& value : torch::jit::last(stack, count)) {
    for_each_tensor(value, see);
    if (value.isGenerator()) {
      TORCH_CHECK(value.toGenerator().device().is_cuda(), "Expected a 'cuda' device type for generator but found '",
                  value.toGenerator().device(), "' (in ", op.schema().name(), ")");
    }
  }
  return device.value_or(c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(current_device())));
}

// Copies that a real kernel would not make; they count for nothing.
thread_local bool computing = false;

class Computing {
 public:
  Computing() : before_(std::exchange(computing, true)) {}
  ~Computing() { computing = before_; }
  Computing(const Computing&) = delete;
  Computing& operator=(const Computing&) = delete;

 private:
  bool before_;
  const c10::ParallelGuard alone_{true};  // tensors of tests are small: waking threads is what would take long
};

bool adds_in_no_order(const c10::OperatorHandle& op, const torch::jit::Stack& stack) {
  if (!kAddByIndex.contains(c10::toString(op.operator_name()))) return false;
  const Computing scope;
  const Tensor index = on_host(torch::jit::peek(stack, 2, op.schema().arguments().size()).toTensor()).flatten();
  return std::get<0>(at::_unique(index)).numel() < index.numel();
}

// With LIMBECK_FAKE_CUDA_WAITS set the calls that led to each wait are printed.
void count(bool waits) {
  static const bool told = std::getenv("LIMBECK_FAKE_CUDA_WAITS") != nullptr;
  if (computing) return;
  ++counters().operators;
  if (!waits) return;
  ++counters().host_waits;
  if (told) std::fprintf(stderr, "the host waits:\n%s\n", c10::get_backtrace(/*frames_to_skip=*/1).c_str());
}

void see_arguments(const c10::OperatorHandle& op, const torch::jit::Stack& stack,
                   const std::function<void(const Tensor&, bool written)>& see) {
  const auto& arguments = op.schema().arguments();
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto* alias = arguments[i].alias_info();
    const bool written = alias != nullptr && alias->isWrite();
    for_each_tensor(torch::jit::peek(stack, i, arguments.size()), [&](const Tensor& t) { see(t, written); });
  }
}

void see_results(const std::vector<c10::IValue>& results, const std::function<void(const Tensor&)>& see) {
  for (const c10::IValue& result : results) for_each_tensor(result, see);
}

std::vector<c10::IValue> places_of(std::vector<c10::IValue> values) {
  for (c10::IValue& value : values) {
    if (value.isTensor() && value.toTensor().defined()) {
      value = place_of(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<Tensor> all;
      for (const Tensor& t : value.toTensorVector()) all.push_back(place_of(t));
      value = all;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> all;
      for (const auto& t : value.toOptionalTensorVector()) {
        all.push_back(t ? std::optional<Tensor>(place_of(*t)) : t);
      }
      value = all;
    }
  }
  return values;
}

// What it wrote goes to where the results of its first call are.
void compute_again(const c10::OperatorHandle& op, const torch::jit::Stack& given, const std::vector<c10::IValue>& made,
                   Stream stream) {
  const Operation operation(stream, op.schema().name().c_str());
  see_arguments(op, given,
                [&](const Tensor& t, bool written) { written ? writes(operation, t) : reads(operation, t); });
  const at::AutoDispatchBelowADInplaceOrView below_autograd;  // as where it was called first
  const Computing scope;
  torch::jit::Stack stack = given;
  at::native::cpu_fallback(op, &stack);
  std::vector<Tensor> into;
  see_results(made, [&](const Tensor& t) { into.push_back(t); });
  auto next = into.begin();
  see_results(stack, [&](const Tensor& t) {
    const Tensor& place = *next++;
    if (!t.defined() || !t.is_cuda()) return;
    writes(operation, place);
    if (on_host(t).const_data_ptr() != on_host(place).const_data_ptr()) on_host(place).copy_(on_host(t));
  });
}

// Computed for its results' shapes.
void record(const c10::OperatorHandle& op, torch::jit::Stack* stack, c10::Device device, Graph& graph) {
  const torch::jit::Stack arguments = torch::jit::last(*stack, op.schema().arguments().size()).vec();
  see_arguments(op, arguments, [&](const Tensor& t, bool written) {
    if (written && t.defined() && t.is_cuda()) graph.forget_later(t.storage().mutable_data(), t.storage().nbytes());
  });
  {
    const c10::DeviceGuard guard(device);
    const Computing scope;
    at::native::cpu_fallback(op, stack);
  }
  const torch::jit::Stack given = places_of(arguments);  // by now of their size, where the operator had to find memory
  const std::vector<c10::IValue> made = places_of(torch::jit::last(*stack, op.schema().returns().size()).vec());
  graph.add([op, given, made](Stream stream) { compute_again(op, given, made, stream); });
}

void compute_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::Device device = check_devices(op, *stack);
  const std::string& name = op.schema().name();
  const bool host_waits = kMakeTheHostWait.contains(name);
  const Stream now = current_stream(device.has_index() ? device.index() : current_device());
  if (host_waits && !computing) refuse_on_captured(now, name.c_str());
  Graph* const graph = computing ? nullptr : capturing(now);
  if (graph != nullptr) return record(op, stack, device, *graph);
  count(host_waits);
  if (!computing && adds_in_no_order(op, *stack)) ++counters().unordered;
  std::optional<Operation> operation;
  if (!computing) {
    operation = begin(name.c_str(), device);
    see_arguments(op, *stack,
                  [&](const Tensor& t, bool written) { written ? writes(*operation, t) : reads(*operation, t); });
  }
  const c10::DeviceGuard guard(device);
  const Computing scope;
  at::native::cpu_fallback(op, stack);
  if (!operation) return;
  for (const c10::IValue& result : torch::jit::last(*stack, op.schema().returns().size())) {
    for_each_tensor(result, [&](const Tensor& t) { writes(*operation, t); });
  }
  if (host_waits) make_host_wait(moment_of(operation->use().stream));
}

// Made on the device that is asked for, or else on the current one.
c10::DeviceGuard guard_of(std::optional<at::Device> device) {
  TORCH_CHECK(!device || !device->has_index() || device->index() < device_count(),
              "CUDA error: invalid device ordinal: ", *device);
  return c10::DeviceGuard(device && device->has_index()
                              ? *device
                              : c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(current_device())));
}

Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard = guard_of(device);
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &device_allocator(),
                                   c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  const c10::DeviceGuard guard = guard_of(device);
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                                           &device_allocator(), c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           c10::dtype_or_default(dtype));
}

// Only a copy between pinned memory and the device that is asked not to wait does not.
bool waits(const Tensor& to, const Tensor& from, bool non_blocking) {
  if (to.is_cuda() && from.is_cuda()) return false;
  const Tensor& host = to.is_cuda() ? from : to;
  return !non_blocking || !is_pinned(host.storage().data());
}

Tensor& copy_(Tensor& to, const Tensor& from, bool non_blocking) {
  if (to.numel() == 0) return to;
  const bool host_waits = waits(to, from, non_blocking);
  const c10::Device device = to.is_cuda() ? to.device() : from.device();
  Graph* const graph = computing ? nullptr : capturing(current_stream(device.index()));
  if (graph != nullptr) {
    // CUDA takes one that does not wait, and would read host memory that is somebody else's by then.
    if (!to.is_cuda() || !from.is_cuda()) refuse_on_captured(current_stream(device.index()), "a copy of host memory");
    graph->forget_later(to.storage().mutable_data(), to.storage().nbytes());
    graph->add([to = place_of(to), from = place_of(from)](Stream stream) {
      const Operation operation(stream, "aten::copy_");
      reads(operation, from);
      writes(operation, to);
      const Computing scope;
      on_host(to).copy_(on_host(from));
    });
    const Computing scope;
    on_host(to).copy_(on_host(from));
    return to;
  }
  count(host_waits);
  std::optional<HostPages> pages;
  if (!computing) {
    const Operation operation = begin("aten::copy_", device);
    reads(operation, from);
    writes(operation, to);
    if (host_waits) {
      make_host_wait(moment_of(operation.use().stream));
    } else if (to.is_cpu()) {
      pages.emplace(to.storage().data(), operation.use());
    }
  }
  const Computing scope;
  Tensor host = on_host(to);
  host.copy_(on_host(from));
  return to;
}

const Tensor& resize_(const Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!format || *format == at::MemoryFormat::Contiguous, "resize_: contiguous alone is there");
  c10::TensorImpl& impl = *self.unsafeGetTensorImpl();
  impl.set_sizes_contiguous(size);
  const size_t bytes = at::detail::computeStorageNbytesContiguous(size, impl.dtype().itemsize(), impl.storage_offset());
  c10::StorageImpl& storage = *self.storage().unsafeGetStorageImpl();
  if (bytes > storage.nbytes()) {
    const c10::DeviceGuard guard(self.device());
    c10::DataPtr larger = device_allocator().allocate(bytes);
    if (storage.nbytes() > 0) refuse_on_captured(current_stream(self.device().index()), "aten::resize_");
    if (storage.nbytes() > 0 && !computing) reads(begin("aten::resize_", self.device()), self);
    if (storage.nbytes() > 0) device_allocator().copy_data(larger.get(), storage.data(), storage.nbytes());
    storage.set_data_ptr_noswap(std::move(larger));
    storage.set_nbytes(bytes);
  }
  return self;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) resize_(to, from.sizes(), std::nullopt);
  Tensor target = to;
  return copy_(target, from, false);
}

at::Scalar item(const Tensor& self) {
  refuse_on_captured(current_stream(self.device().index()), "aten::item");
  count(/*waits=*/true);
  const Operation operation = begin("aten::item", self.device());
  reads(operation, self);
  make_host_wait(moment_of(operation.use().stream));
  return on_host(self).item();
}

// What cuBLAS offers: products of half types with sums kept in float32.
void check_out_dtype(const char* name, const Tensor& a, const Tensor& b, at::ScalarType out) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), name, ": expected operands of one dtype, got ", a.scalar_type(),
              " and ", b.scalar_type());
  const bool half = a.scalar_type() == at::kHalf || a.scalar_type() == at::kBFloat16;
  TORCH_CHECK(out == a.scalar_type() || (out == at::kFloat && half), name,
              ": out_dtype must be the same as input dtype or fp32 for fp16/bf16 inputs, got ", out, " for ",
              a.scalar_type());
}

// Computed on the host: a real product has no copies of its operands on the device.
template <class Product>
Tensor& put_product(const char* name, std::initializer_list<Tensor> operands, Tensor& out, const Product& product) {
  if (capturing(current_stream(out.device().index())) == nullptr) count(/*waits=*/false);
  give(name, out.device(), operands, {out}, [out = place_of(out), product] {
    const Computing scope;
    on_host(out).copy_(product());
  });
  return out;
}

Tensor& mm_dtype_out(const Tensor& a, const Tensor& b, at::ScalarType type, Tensor& out) {
  check_out_dtype("mm", a, b, type);
  TORCH_CHECK(type == out.scalar_type(), "out_dtype must be the same as the dtype of the provided out tensor");
  return put_product("aten::mm", {a, b}, out, [type, a = place_of(a), b = place_of(b)] {
    return at::mm(on_host(a).to(type), on_host(b).to(type));
  });
}

Tensor mm_dtype(const Tensor& a, const Tensor& b, at::ScalarType type) {
  Tensor out = at::empty({a.size(0), b.size(1)}, a.options().dtype(type));
  return mm_dtype_out(a, b, type, out);
}

Tensor& addmm_dtype_out(const Tensor& self, const Tensor& a, const Tensor& b, at::ScalarType type,
                        const at::Scalar& beta, const at::Scalar& alpha, Tensor& out) {
  check_out_dtype("addmm", a, b, type);
  TORCH_CHECK(type == out.scalar_type(), "out_dtype must be the same as the dtype of the provided out tensor");
  TORCH_CHECK(type == self.scalar_type() || self.scalar_type() == a.scalar_type(),
              "self dtype must match either out_dtype or mat1 dtype");
  return put_product("aten::addmm", {self, a, b}, out, [=, self = place_of(self), a = place_of(a), b = place_of(b)] {
    return at::addmm(on_host(self).to(type), on_host(a).to(type), on_host(b).to(type), beta, alpha);
  });
}

Tensor bmm_dtype(const Tensor& a, const Tensor& b, at::ScalarType type) {
  check_out_dtype("bmm", a, b, type);
  Tensor out = at::empty({a.size(0), a.size(1), b.size(2)}, a.options().dtype(type));
  return put_product("aten::bmm", {a, b}, out, [type, a = place_of(a), b = place_of(b)] {
    return at::bmm(on_host(a).to(type), on_host(b).to(type));
  });
}

// On GPUs from Hopper on: bfloat16, and the host does not wait for the ends of the groups.
Tensor grouped_mm(const Tensor& a, const Tensor& b, const std::optional<Tensor>& ends,
                  const std::optional<Tensor>& bias, std::optional<at::ScalarType> type) {
  TORCH_CHECK(a.scalar_type() == at::kBFloat16 && b.scalar_type() == at::kBFloat16,
              "Expected mat_a and mat_b to be BFloat16");
  TORCH_CHECK(ends && ends->is_cuda() && ends->scalar_type() == at::kInt && !bias && !type,
              "the fake grouped product takes the ends of groups in int32 on the device, and nothing else");
  Tensor out = b.dim() == 3 ? at::empty({a.size(0), b.size(2)}, a.options())
                            : at::empty({ends->size(0), a.size(0), b.size(1)}, a.options());
  return put_product("aten::_grouped_mm", {a, b, *ends}, out,
                     [ends = place_of(*ends), a = place_of(a), b = place_of(b)] {
                       return at::_grouped_mm(on_host(a), on_host(b), on_host(ends));
                     });
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&compute_on_host>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("copy_", copy_);
  m.impl("resize_", resize_);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", item);
  m.impl("record_stream", [](Tensor& t, at::Stream stream) { record_stream(t.storage().data(), stream_of(stream)); });
  m.impl("mm.dtype", mm_dtype);
  m.impl("mm.dtype_out", mm_dtype_out);
  m.impl("addmm.dtype_out", addmm_dtype_out);
  m.impl("bmm.dtype", bmm_dtype);
  m.impl("_grouped_mm", grouped_mm);
  m.impl("as_strided", [](const Tensor& self, at::IntArrayRef size, at::IntArrayRef stride, std::optional<int64_t> at) {
    return at::native::as_strided_tensorimpl(self, size, stride, at);
  });
  m.impl("view", [](const Tensor& self, at::IntArrayRef size) { return at::native::view(self, size); });
  m.impl("view_as_complex", [](const Tensor& self) { return at::native::view_as_complex(self); });
  m.impl("view_as_real", [](const Tensor& self) { return at::native::view_as_real(self); });
  m.impl("unfold", [](const Tensor& self, int64_t dimension, int64_t size, int64_t step) {
    return at::native::unfold(self, dimension, size, step);
  });
  m.impl("_reshape_alias", [](const Tensor& self, at::IntArrayRef size, at::IntArrayRef stride) {
    return at::native::_reshape_alias(self, size, stride);
  });
}

}  // namespace
}  // namespace limbeck::fake_cuda
