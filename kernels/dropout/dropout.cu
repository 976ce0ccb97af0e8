// Dropout on CUDA: each thread takes one pack of elements; the bits are the CPU's (counter_bits.h).
#include "kernels/cuda/device_storage.cuh"
#include "kernels/cuda/launch_shape.cuh"
#include "kernels/dropout/dropout_cuda.h"

namespace limbeck::kernels {
namespace {

constexpr int kDropoutThreads = 256;

template <class T, int elements>
__global__ void __launch_bounds__(kDropoutThreads) drop(DropoutArguments a, int64_t rows) {
  using S = typename DeviceCompute<T>::Type;
  using P = Pack<T, elements>;
  const int64_t packs = rounded_up_quotient(a.width, elements);
  const int64_t index = thread_number();
  const int64_t row = index / packs, column = index % packs * elements;
  if (row >= rows) return;
  const uint64_t key = row_key(a.key, a.tokens[row]);
  const P x = *reinterpret_cast<const P*>(static_cast<const T*>(a.x) + row * a.x_row + column);
  P out;
  for (int j = 0; j < elements; ++j) {
    const uint64_t pair = pair_bits(key, (column + j) / 2);
    const uint32_t bits = static_cast<uint32_t>((column + j) % 2 == 0 ? pair : pair >> 32);
    put(&out.value[j], widened(x.value[j]) * (bits >= a.threshold ? static_cast<S>(a.scale) : S(0)));
  }
  *reinterpret_cast<P*>(static_cast<T*>(a.out) + row * a.width + column) = out;
}

unsigned grid_of(int64_t rows, int64_t width, int elements) {
  return blocks_for(rows * rounded_up_quotient(width, elements), kDropoutThreads);
}

}  // namespace

void launch_dropout(Storage storage, const DropoutArguments& a, int64_t rows, cudaStream_t stream) {
  if (rows == 0 || a.width == 0) return;
  with_device_type(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    constexpr int kPack = kPackElements<T>;
    if (packable<T>(a.x, a.x_row) && packable<T>(a.out, a.width)) {
      drop<T, kPack><<<grid_of(rows, a.width, kPack), kDropoutThreads, 0, stream>>>(a, rows);
    } else {
      drop<T, 1><<<grid_of(rows, a.width, 1), kDropoutThreads, 0, stream>>>(a, rows);
    }
  });
}

}  // namespace limbeck::kernels
