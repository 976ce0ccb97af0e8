#include "kernels/resolvent/resolvent_cuda.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>

#include "kernels/operator/checks.h"
#include "kernels/resolvent/resolvent_operators.h"
#include "kernels/resolvent/resolvent_plan.h"
#include "kernels/resolvent/resolvent_rows.h"

namespace limbeck::kernels {
namespace {

using OptionalDocuments = std::optional<at::Tensor>;

const void* rows_on(const void* pointer, int64_t elements, int64_t bytes) {
  return static_cast<const char*>(pointer) + elements * bytes;
}
void* rows_on(void* pointer, int64_t elements, int64_t bytes) { return static_cast<char*>(pointer) + elements * bytes; }

// The arguments as device pointers, everything that these point to, and the scratch.
class DeviceResolvent {
 public:
  DeviceResolvent(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
                  const OptionalDocuments& documents, const ResolventScratch& scratch, const double* state = nullptr)
      : storage(storage_of(a)),
        bytes(a.element_size()),
        n(a.size(-1)),
        rows(a.numel() / n),
        stream(c10::cuda::getCurrentCUDAStream()),
        rows_(a, b, c, z, documents),
        plan_(scratch),
        scratch_(at::empty({scratch.numbers()}, a.options().dtype(at::kDouble))),
        state_(state) {}

  // body(matrices, first): of as many rows at a time as the scratch is for.
  template <class Body>
  void for_rows(Body body) const {
    const int64_t most = rows_at_once(rows, n);
    for (int64_t first = 0; first < rows; first += most) {
      const auto from = [&](const Rows& of) { return rows_on(of.data, first * of.stride, bytes); };
      DeviceTridiagonals m{from(rows_.a),
                           from(rows_.b),
                           from(rows_.c),
                           from(rows_.z),
                           rows_.a.stride,
                           rows_.b.stride,
                           rows_.c.stride,
                           rows_.z.stride,
                           nullptr,
                           0,
                           nullptr,
                           std::min(most, rows - first),
                           n};
      if (rows_.documents) {
        m.documents = static_cast<const int64_t*>(rows_.documents->data) + first * rows_.documents->stride;
        m.documents_row = rows_.documents->stride;
      }
      if (state_ != nullptr) m.state = state_ + 2 * first;
      body(m, first);
    }
  }

  void sweep(const DeviceTridiagonals& m, DeviceSweep one) const {
    one.products = numbers();
    one.entries = numbers() + plan_.products;
    launch_resolvent_sweep(storage, m, one, stream);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  // Scratch of a complex number a position, number k of those that the plan has.
  double* array(int64_t k) const { return numbers() + plan_.products + plan_.entries + k * plan_.states; }
  double* runs() const { return array(plan_.arrays); }

  const Storage storage;
  const int64_t bytes, n, rows;
  const cudaStream_t stream;

 private:
  double* numbers() const { return scratch_.mutable_data_ptr<double>(); }

  const ResolventRows rows_;
  const ResolventScratch plan_;
  const at::Tensor scratch_;
  const double* const state_;
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> forward_on_cuda(const at::Tensor& a, const at::Tensor& b,
                                                               const at::Tensor& c, const at::Tensor& z, bool causal,
                                                               const OptionalDocuments& documents, bool keep) {
  const c10::cuda::CUDAGuard guard(a.device());
  auto outputs = resolvent_outputs(a, b, c, z, causal, documents, keep);
  const auto& [g, left, right] = outputs;
  if (a.numel() == 0) return outputs;
  const int64_t n = a.size(-1);
  const DeviceResolvent work(a, b, c, z, documents, resolvent_scratch(a.numel() / n, n, causal, keep));
  work.for_rows([&](const DeviceTridiagonals& m, int64_t first) {
    const auto states = [&](const at::Tensor& kept, int64_t k) {
      return keep ? kept.mutable_data_ptr<double>() + 2 * first * n : work.array(k);
    };
    void* out = rows_on(g.mutable_data_ptr(), 2 * first * n, work.bytes);
    DeviceSweep from_left;
    if (keep || !causal) from_left.states = states(left, 0);
    if (causal) from_left.out = out;
    work.sweep(m, from_left);
    if (causal) return;
    DeviceSweep from_right;
    from_right.from_right = true;
    from_right.states = states(right, 1);
    work.sweep(m, from_right);
    launch_resolvent_diagonal(work.storage, m, from_left.states, from_right.states, out, work.stream);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return outputs;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward_on_cuda(
    const at::Tensor& grad, const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
    bool causal, const OptionalDocuments& documents, const at::Tensor& left, const at::Tensor& right) {
  const c10::cuda::CUDAGuard guard(a.device());
  auto outputs = resolvent_gradients(grad, a, b, c, z, causal, documents, left, right);
  const auto& [grad_a, grad_b, grad_c, grad_z] = outputs;
  if (a.numel() == 0) return outputs;
  const int64_t n = a.size(-1);
  const at::Tensor dense = grad.contiguous();
  const DeviceResolvent work(a, b, c, z, documents, resolvent_backward_scratch(a.numel() / n, n, causal));
  work.for_rows([&](const DeviceTridiagonals& m, int64_t first) {
    const auto from = [&](const at::Tensor& of, int64_t width) {
      return rows_on(of.mutable_data_ptr(), first * width, work.bytes);
    };
    ResolventGradients all{};
    all.grad = rows_on(dense.const_data_ptr(), 2 * first * n, work.bytes);
    all.left = left.const_data_ptr<double>() + 2 * first * n;
    all.right = causal ? nullptr : right.const_data_ptr<double>() + 2 * first * n;
    all.source = work.array(0);
    all.left_sums = work.array(1);
    all.right_sums = causal ? nullptr : work.array(2);
    all.grad_a = from(grad_a, n);
    all.grad_b = from(grad_b, n - 1);
    all.grad_c = from(grad_c, n - 1);
    all.partial_z = work.runs();
    launch_resolvent_gradient_source(work.storage, m, all, work.stream);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    DeviceSweep sums;
    sums.from_right = true;
    sums.green = all.left;
    sums.source = all.source;
    sums.states = work.array(1);
    work.sweep(m, sums);
    if (!causal) {
      sums.from_right = false;
      sums.green = all.right;
      sums.states = work.array(2);
      work.sweep(m, sums);
    }
    launch_resolvent_gradients(work.storage, m, all, from(grad_z, 2), work.stream);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return outputs;
}

std::tuple<at::Tensor, at::Tensor> continued_on_cuda(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c,
                                                     const at::Tensor& z, const at::Tensor& state) {
  const c10::cuda::CUDAGuard guard(a.device());
  auto outputs = continued_resolvent_outputs(a, b, c, z, state);
  const auto& [g, next] = outputs;
  if (a.numel() == 0) return outputs;
  const int64_t n = a.size(-1);
  const at::Tensor before = state.contiguous();
  const DeviceResolvent work(a, b, c, z.expand(state.sizes()), std::nullopt,
                             resolvent_scratch(a.numel() / n, n, true, false), before.const_data_ptr<double>());
  work.for_rows([&](const DeviceTridiagonals& m, int64_t first) {
    DeviceSweep sweep;
    sweep.out = rows_on(g.mutable_data_ptr(), 2 * first * n, work.bytes);
    sweep.last = next.mutable_data_ptr<double>() + 2 * first;
    work.sweep(m, sweep);
  });
  return outputs;
}

TORCH_LIBRARY_IMPL(limbeck, CUDA, m) {
  m.impl("resolvent_forward", forward_on_cuda);
  m.impl("resolvent_backward", backward_on_cuda);
  m.impl("continued_resolvent", continued_on_cuda);
}

}  // namespace
}  // namespace limbeck::kernels
