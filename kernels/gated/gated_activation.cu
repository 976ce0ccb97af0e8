// SwiGLU and GeGLU-tanh on CUDA: each thread takes one pack of elements; the formula is the CPU's (gated_formula.h).
#include "kernels/gated/gated_activation_cuda.h"

#include "kernels/cuda/device_storage.cuh"
#include "kernels/cuda/launch_shape.cuh"

namespace limbeck::kernels {

// What gated_formula.h asks of its value type. Declared before it: these are no class types, so lookup is by order.
__device__ __forceinline__ float clamp_keeping_nan(float value, double low, double high) {
  const float raised = value < static_cast<float>(low) ? static_cast<float>(low) : value;
  return raised > static_cast<float>(high) ? static_cast<float>(high) : raised;
}
__device__ __forceinline__ double clamp_keeping_nan(double value, double low, double high) {
  const double raised = value < low ? low : value;
  return raised > high ? high : raised;
}
__device__ __forceinline__ float minus_magnitude(float value) { return -fabsf(value); }
__device__ __forceinline__ double minus_magnitude(double value) { return -fabs(value); }
__device__ __forceinline__ float exp_of_nonpositive(float value) { return expf(value); }
__device__ __forceinline__ double exp_of_nonpositive(double value) { return exp(value); }
__device__ __forceinline__ float reciprocal_of_one_plus(float value) { return 1.0f / (1.0f + value); }
__device__ __forceinline__ double reciprocal_of_one_plus(double value) { return 1.0 / (1.0 + value); }
template <class S>
__device__ __forceinline__ S where_nonnegative(const S& condition, const S& yes, const S& no) {
  return condition >= S(0) ? yes : no;
}

}  // namespace limbeck::kernels

#include "kernels/gated/gated_formula.h"

namespace limbeck::kernels {
namespace {

constexpr int kThreads = 256;

// Row and first column of this thread's pack; false past the end. Index: of a pack; the GPU divides 64-bit numbers in
// some hundred instructions.
template <int elements, class Index>
__device__ __forceinline__ bool place(int64_t rows, int64_t width, int64_t& row, int64_t& column) {
  const Index packs = static_cast<Index>(width / elements);
  const Index index = thread_number<Index>();
  row = index / packs;
  column = static_cast<int64_t>(index % packs) * elements;
  return row < rows;
}

template <class Activation, class T, int elements, class Index>
__global__ void __launch_bounds__(kThreads) forward(GatedForward a, int64_t rows) {
  using S = typename DeviceCompute<T>::Type;
  using P = Pack<T, elements>;
  int64_t row, column;
  if (!place<elements, Index>(rows, a.width, row, column)) return;
  const P gate = *reinterpret_cast<const P*>(static_cast<const T*>(a.gate) + row * a.gate_row + column);
  const P up = *reinterpret_cast<const P*>(static_cast<const T*>(a.up) + row * a.up_row + column);
  P out;
  for (int j = 0; j < elements; ++j) {
    put(&out.value[j], gated_forward<Activation, S>(widened(gate.value[j]), widened(up.value[j])));
  }
  *reinterpret_cast<P*>(static_cast<T*>(a.out) + row * a.width + column) = out;
}

template <class Activation, class T, int elements, class Index>
__global__ void __launch_bounds__(kThreads) backward(GatedBackward a, int64_t rows) {
  using S = typename DeviceCompute<T>::Type;
  using P = Pack<T, elements>;
  int64_t row, column;
  if (!place<elements, Index>(rows, a.width, row, column)) return;
  const P grad = *reinterpret_cast<const P*>(static_cast<const T*>(a.grad) + row * a.grad_row + column);
  const P gate = *reinterpret_cast<const P*>(static_cast<const T*>(a.gate) + row * a.gate_row + column);
  const P up = *reinterpret_cast<const P*>(static_cast<const T*>(a.up) + row * a.up_row + column);
  P grad_gate, grad_up;
  for (int j = 0; j < elements; ++j) {
    const auto gradients =
        gated_backward<Activation, S>(widened(grad.value[j]), widened(gate.value[j]), widened(up.value[j]));
    put(&grad_gate.value[j], gradients.gate);
    put(&grad_up.value[j], gradients.up);
  }
  *reinterpret_cast<P*>(static_cast<T*>(a.grad_gate) + row * a.width + column) = grad_gate;
  *reinterpret_cast<P*>(static_cast<T*>(a.grad_up) + row * a.width + column) = grad_up;
}

// Calls launched(index, blocks), decltype(index) being the type of an Index.
template <class Launched>
void with_index(int64_t rows, int64_t width, int elements, Launched launched) {
  const int64_t packs = rows * (width / elements);
  const unsigned blocks = blocks_for(packs, kThreads);
  if (packs > 0xffff0000) {  // the last block counts on
    launched(uint64_t{}, blocks);
  } else {
    launched(uint32_t{}, blocks);
  }
}

template <class Activation>
void launch(Storage storage, const GatedForward& a, int64_t rows, cudaStream_t stream) {
  with_device_type(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    constexpr int kPack = kPackElements<T>;
    if (packable<T>(a.gate, a.gate_row) && packable<T>(a.up, a.up_row) && packable<T>(a.out, a.width)) {
      with_index(rows, a.width, kPack, [&](auto index, unsigned blocks) {
        forward<Activation, T, kPack, decltype(index)><<<blocks, kThreads, 0, stream>>>(a, rows);
      });
    } else {
      with_index(rows, a.width, 1, [&](auto index, unsigned blocks) {
        forward<Activation, T, 1, decltype(index)><<<blocks, kThreads, 0, stream>>>(a, rows);
      });
    }
  });
}

template <class Activation>
void launch(Storage storage, const GatedBackward& a, int64_t rows, cudaStream_t stream) {
  with_device_type(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    constexpr int kPack = kPackElements<T>;
    if (packable<T>(a.grad, a.grad_row) && packable<T>(a.gate, a.gate_row) && packable<T>(a.up, a.up_row) &&
        packable<T>(a.grad_gate, a.width) && packable<T>(a.grad_up, a.width)) {
      with_index(rows, a.width, kPack, [&](auto index, unsigned blocks) {
        backward<Activation, T, kPack, decltype(index)><<<blocks, kThreads, 0, stream>>>(a, rows);
      });
    } else {
      with_index(rows, a.width, 1, [&](auto index, unsigned blocks) {
        backward<Activation, T, 1, decltype(index)><<<blocks, kThreads, 0, stream>>>(a, rows);
      });
    }
  });
}

}  // namespace

void launch_gated_forward(Storage storage, const GatedForward& args, int64_t rows, cudaStream_t stream) {
  if (rows == 0) return;
  args.kind == GatedKind::kSwiGlu ? launch<Silu>(storage, args, rows, stream)
                                  : launch<GeluTanh>(storage, args, rows, stream);
}

void launch_gated_backward(Storage storage, const GatedBackward& args, int64_t rows, cudaStream_t stream) {
  if (rows == 0) return;
  args.kind == GatedKind::kSwiGlu ? launch<Silu>(storage, args, rows, stream)
                                  : launch<GeluTanh>(storage, args, rows, stream);
}

}  // namespace limbeck::kernels
