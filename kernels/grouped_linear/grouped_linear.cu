// The grouped products on CUDA. A block makes one square tile of a group's product; it finds its group by bisecting the
// ends. Half types are multiplied by the tensor cores, the others by threads that have a small square each.
#include "kernels/grouped_linear/grouped_linear_cuda.h"

#include "kernels/cuda/launch_shape.cuh"
#include "kernels/grouped_linear/half_tile.cuh"
#include "kernels/grouped_linear/tile_place.cuh"
#include "kernels/grouped_linear/wide_tile.cuh"

namespace limbeck::kernels {
namespace {

template <class T>
struct TileOf {
  using Type = WideTile<T>;
};
template <>
struct TileOf<__half> {
  using Type = HalfTile<__half>;
};
template <>
struct TileOf<__nv_bfloat16> {
  using Type = HalfTile<__nv_bfloat16>;
};

template <class T>
__device__ __forceinline__ const T* typed(const Lines& lines) {
  return static_cast<const T*>(lines.data);
}

// Blocks: places of rows (tile_place.cuh) by tiles of columns. Four on a multiprocessor leave 64 registers a thread.
template <class T, bool transposed>
__global__ void __launch_bounds__(kTileThreads, 4) linear(GroupedLinearWork w) {
  using Tile = typename TileOf<T>::Type;
  const RowTile tile = row_tile(w.groups, static_cast<int>(blockIdx.x), Tile::kSide);
  if (tile.rows <= 0) return;
  const int column = static_cast<int>(blockIdx.y) * Tile::kSide;
  const T* weight = typed<T>(w.weight) + tile.group * w.group_stride;
  const Operand<T, false> rows{typed<T>(w.rows) + int64_t{tile.begin} * w.rows.stride, w.rows.stride, tile.rows,
                               w.depth};
  const Operand<T, transposed> columns{weight + int64_t{column} * (transposed ? 1 : w.weight.stride), w.weight.stride,
                                       w.width - column, w.depth};
  const Target<T> out{static_cast<T*>(w.out) + int64_t{tile.begin} * w.width + column, w.width, tile.rows,
                      w.width - column};
  Tile::multiply(rows, columns, out);
}

// Blocks: tiles of the product by groups.
template <class T>
__global__ void __launch_bounds__(kTileThreads) outer(GroupedOuterWork w) {
  using Tile = typename TileOf<T>::Type;
  const int across = (w.width + Tile::kSide - 1) / Tile::kSide, group = static_cast<int>(blockIdx.y);
  const int line = static_cast<int>(blockIdx.x) / across * Tile::kSide;
  const int column = static_cast<int>(blockIdx.x) % across * Tile::kSide;
  const int begin = end_of_group(w.groups, group - 1), rows = end_of_group(w.groups, group) - begin;
  const Operand<T, true> lines{typed<T>(w.left) + int64_t{begin} * w.left.stride + line, w.left.stride, w.height - line,
                               rows};
  const Operand<T, true> columns{typed<T>(w.right) + int64_t{begin} * w.right.stride + column, w.right.stride,
                                 w.width - column, rows};
  const int64_t first = (int64_t{group} * w.height + line) * w.width + column;
  const Target<T> out{static_cast<T*>(w.out) + first, w.width, w.height - line, w.width - column};
  Tile::multiply(lines, columns, out);
}

}  // namespace

void launch_grouped_linear(Storage storage, const GroupedLinearWork& work, cudaStream_t stream) {
  if (work.groups.rows == 0 || work.width == 0) return;
  with_device_type(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    constexpr int kSide = TileOf<T>::Type::kSide;
    const dim3 grid(static_cast<unsigned>(row_tiles(work.groups, kSide)), blocks_for(work.width, kSide));
    if (work.transposed) {
      linear<T, true><<<grid, kTileThreads, 0, stream>>>(work);
    } else {
      linear<T, false><<<grid, kTileThreads, 0, stream>>>(work);
    }
  });
}

void launch_grouped_outer(Storage storage, const GroupedOuterWork& work, cudaStream_t stream) {
  if (work.height == 0 || work.width == 0) return;
  with_device_type(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    constexpr int kSide = TileOf<T>::Type::kSide;
    const unsigned tiles = blocks_for(work.height, kSide) * blocks_for(work.width, kSide);
    const dim3 grid(tiles, static_cast<unsigned>(work.groups.count));
    outer<T><<<grid, kTileThreads, 0, stream>>>(work);
  });
}

}  // namespace limbeck::kernels
