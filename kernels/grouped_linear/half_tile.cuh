// A tile of a product of half types by the tensor cores, with float32 sums: each of 2 by 4 warps has 32 by 16 of it.
#pragma once
#include <mma.h>

#include "kernels/grouped_linear/tile_place.cuh"

namespace limbeck::kernels {

template <class T>
struct HalfTile {
  static constexpr int kSide = 64, kDepth = 32;
  static constexpr int kFetched = kSide * kDepth / kTileThreads;  // values of each operand by one thread: 16 bytes
  static constexpr int kGap = 8;                                  // 16 bytes: rows of a fragment lie in other banks
  static constexpr int kFragment = 16, kWarpsAcross = 4, kFragmentsDown = 2;
  static constexpr int kSumStride = kSide + 4;
  using Values = Pack<T, kFetched>;

  // Each operand is kept as it lies in memory.
  template <bool across>
  struct Slab {
    static constexpr int kStride = (across ? kSide : kDepth) + kGap;
    alignas(32) T value[(across ? kDepth : kSide) * kStride];
  };

  template <bool across>
  static __device__ __forceinline__ void fetch_part(Values& values, const Operand<T, across>& from, int first,
                                                    bool packs) {
    constexpr int kParts = (across ? kSide : kDepth) / kFetched;
    const int outer = static_cast<int>(threadIdx.x) / kParts;
    const int inner = static_cast<int>(threadIdx.x) % kParts * kFetched;
    if (across) {
      const int depth = first + outer;
      fetch(values, from.data + int64_t{depth} * from.stride + inner, depth < from.depth ? from.lines - inner : 0,
            packs);
    } else {
      const int depth = first + inner;
      fetch(values, from.data + int64_t{outer} * from.stride + depth, outer < from.lines ? from.depth - depth : 0,
            packs);
    }
  }

  template <bool across>
  static __device__ __forceinline__ void keep_part(Slab<across>& slab, const Values& values) {
    constexpr int kParts = (across ? kSide : kDepth) / kFetched;
    const unsigned outer = threadIdx.x / kParts, inner = threadIdx.x % kParts * kFetched;
    *reinterpret_cast<Values*>(&slab.value[outer * Slab<across>::kStride + inner]) = values;
  }

  // Where a fragment begins: of so many lines and depths.
  template <bool across>
  static __device__ __forceinline__ const T* fragment_of(const Slab<across>& slab, unsigned line, int depth) {
    return &slab.value[across ? depth * Slab<across>::kStride + line : line * Slab<across>::kStride + depth];
  }

  template <bool left_across, bool right_across>
  static __device__ __forceinline__ void multiply(const Operand<T, left_across>& left,
                                                  const Operand<T, right_across>& right, const Target<T>& out) {
    namespace wmma = nvcuda::wmma;
    // The left lines are rows of the first factor, the right ones columns of the second.
    using LeftLayout = typename Choose<left_across, wmma::col_major, wmma::row_major>::Type;
    using RightLayout = typename Choose<right_across, wmma::row_major, wmma::col_major>::Type;
    __shared__ Slab<left_across> left_slab;
    __shared__ Slab<right_across> right_slab;
    alignas(32) __shared__ float sums[kSide * kSumStride];

    const bool left_packs = in_packs<kFetched>(left.data, left.stride);
    const bool right_packs = in_packs<kFetched>(right.data, right.stride);
    const unsigned warp = threadIdx.x / 32;
    const unsigned line = warp / kWarpsAcross * kFragmentsDown * kFragment, column = warp % kWarpsAcross * kFragment;
    wmma::fragment<wmma::accumulator, kFragment, kFragment, kFragment, float> sum[kFragmentsDown];
#pragma unroll
    for (int i = 0; i < kFragmentsDown; ++i) wmma::fill_fragment(sum[i], 0.0f);

    for (int first = 0; first < left.depth; first += kDepth) {
      // Not while the values before are multiplied: the registers for that are those of another block.
      Values of_left, of_right;
      fetch_part(of_left, left, first, left_packs);
      fetch_part(of_right, right, first, right_packs);
      __syncthreads();  // the values before are still being multiplied
      keep_part(left_slab, of_left);
      keep_part(right_slab, of_right);
      __syncthreads();
#pragma unroll 1  // fragments of two depths at once would take more than 64 registers
      for (int depth = 0; depth < kDepth; depth += kFragment) {
        wmma::fragment<wmma::matrix_b, kFragment, kFragment, kFragment, T, RightLayout> b;
        wmma::load_matrix_sync(b, fragment_of(right_slab, column, depth), Slab<right_across>::kStride);
#pragma unroll
        for (int i = 0; i < kFragmentsDown; ++i) {
          wmma::fragment<wmma::matrix_a, kFragment, kFragment, kFragment, T, LeftLayout> a;
          wmma::load_matrix_sync(a, fragment_of(left_slab, line + i * kFragment, depth), Slab<left_across>::kStride);
          wmma::mma_sync(sum[i], a, b, sum[i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kFragmentsDown; ++i) {
      wmma::store_matrix_sync(&sums[(line + i * kFragment) * kSumStride + column], sum[i], kSumStride,
                              wmma::mem_row_major);
    }
    __syncthreads();
    // Neighbouring threads write neighbouring elements.
    for (unsigned i = threadIdx.x; i < kSide * kSide; i += kTileThreads) {
      const int at = static_cast<int>(i / kSide), to = static_cast<int>(i % kSide);
      if (at < out.lines && to < out.columns) put(&out.data[int64_t{at} * out.stride + to], sums[at * kSumStride + to]);
    }
  }

 private:
  template <bool first, class A, class B>
  struct Choose {
    using Type = A;
  };
  template <class A, class B>
  struct Choose<false, A, B> {
    using Type = B;
  };
};

}  // namespace limbeck::kernels
