// A tile of a product in float32 or float64: each of 16 by 16 threads has a square of it in registers.
#pragma once
#include "kernels/grouped_linear/tile_place.cuh"

namespace limbeck::kernels {

template <class T>
struct WideTile {
  static constexpr int kThreadsAcross = 16, kDepth = 16;
  static constexpr int kSquare = sizeof(T) == 8 ? 2 : 4;  // of one thread; as many values it fetches of each operand
  static constexpr int kSide = kThreadsAcross * kSquare;
  static constexpr int kGap = kSquare;  // keeps packs aligned, and stores of neighbours out of each other's banks
  using Values = Pack<T, kSquare>;
  // Of an operand, so many values of its lines at each depth.
  using Slab = T[kDepth][kSide + kGap];

  // The values of this thread, from depth `first` on.
  static __device__ __forceinline__ void fetch_part(Values& values, const Operand<T, false>& from, int first,
                                                    bool packs) {
    constexpr int kParts = kDepth / kSquare;
    const int line = static_cast<int>(threadIdx.x) / kParts;
    const int depth = first + static_cast<int>(threadIdx.x) % kParts * kSquare;
    fetch(values, from.data + int64_t{line} * from.stride + depth, line < from.lines ? from.depth - depth : 0, packs);
  }
  static __device__ __forceinline__ void fetch_part(Values& values, const Operand<T, true>& from, int first,
                                                    bool packs) {
    const int line = static_cast<int>(threadIdx.x) % kThreadsAcross * kSquare;
    const int depth = first + static_cast<int>(threadIdx.x) / kThreadsAcross;
    fetch(values, from.data + int64_t{depth} * from.stride + line, depth < from.depth ? from.lines - line : 0, packs);
  }

  static __device__ __forceinline__ void keep_part(Slab& slab, const Values& values, const Operand<T, false>&) {
    constexpr int kParts = kDepth / kSquare;
    const unsigned line = threadIdx.x / kParts, depth = threadIdx.x % kParts * kSquare;
    for (int i = 0; i < kSquare; ++i) slab[depth + i][line] = values.value[i];
  }
  static __device__ __forceinline__ void keep_part(Slab& slab, const Values& values, const Operand<T, true>&) {
    const unsigned line = threadIdx.x % kThreadsAcross * kSquare, depth = threadIdx.x / kThreadsAcross;
    *reinterpret_cast<Values*>(&slab[depth][line]) = values;
  }

  template <bool left_across, bool right_across>
  static __device__ __forceinline__ void multiply(const Operand<T, left_across>& left,
                                                  const Operand<T, right_across>& right, const Target<T>& out) {
    alignas(16) __shared__ Slab left_slab;
    alignas(16) __shared__ Slab right_slab;
    const bool left_packs = in_packs<kSquare>(left.data, left.stride);
    const bool right_packs = in_packs<kSquare>(right.data, right.stride);
    const unsigned line = threadIdx.x / kThreadsAcross * kSquare, column = threadIdx.x % kThreadsAcross * kSquare;
    Values sums[kSquare] = {};
    Values of_left, of_right;
    fetch_part(of_left, left, 0, left_packs);
    fetch_part(of_right, right, 0, right_packs);
    for (int first = 0; first < left.depth; first += kDepth) {
      __syncthreads();  // the values before are still being multiplied
      keep_part(left_slab, of_left, left);
      keep_part(right_slab, of_right, right);
      __syncthreads();
      if (first + kDepth < left.depth) {  // on their way while these are multiplied
        fetch_part(of_left, left, first + kDepth, left_packs);
        fetch_part(of_right, right, first + kDepth, right_packs);
      }
#pragma unroll
      for (int depth = 0; depth < kDepth; ++depth) {
        const Values a = *reinterpret_cast<const Values*>(&left_slab[depth][line]);
        const Values b = *reinterpret_cast<const Values*>(&right_slab[depth][column]);
#pragma unroll
        for (int i = 0; i < kSquare; ++i) {
#pragma unroll
          for (int j = 0; j < kSquare; ++j) sums[i].value[j] += a.value[i] * b.value[j];
        }
      }
    }
    const bool out_packs = in_packs<kSquare>(out.data, out.stride);
#pragma unroll
    for (int i = 0; i < kSquare; ++i) {
      const int at = static_cast<int>(line) + i, from = static_cast<int>(column);
      if (at >= out.lines) break;
      T* const to = out.data + int64_t{at} * out.stride + from;
      if (out_packs && from + kSquare <= out.columns) {
        *reinterpret_cast<Values*>(to) = sums[i];
      } else {
        for (int j = 0; j < kSquare; ++j) {
          if (from + j < out.columns) to[j] = sums[i].value[j];
        }
      }
    }
  }
};

}  // namespace limbeck::kernels
