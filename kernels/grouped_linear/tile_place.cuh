// Which rows a block of a grouped product makes, what it reads and where it writes.
#pragma once
#include "kernels/cuda/device_storage.cuh"
#include "kernels/grouped_linear/grouped_linear_cuda.h"

namespace limbeck::kernels {

constexpr int kTileThreads = 256;

// One side of a tile's product: `lines` of it, each `depth` long, as far as the matrix goes. In memory either the lines
// have adjacent elements or, with `across`, the elements of all lines at one depth are adjacent.
template <class T, bool across>
struct Operand {
  const T* data;
  int stride, lines, depth;
};

// Where the tile of a product goes, as far as the matrix goes.
template <class T>
struct Target {
  T* data;
  int stride, lines, columns;
};

__device__ __forceinline__ int end_of_group(const Groups& groups, int group) {
  if (group < 0) return 0;
  if (group == groups.count - 1) return groups.rows;
  const int end = groups.ends[group];
  return end < 0 ? 0 : end > groups.rows ? groups.rows : end;
}

// The first of the places of a group. Group g with rows [begin, end) gets floor(end / side) - floor(begin / side) + 1
// of them, at least as many as it has tiles, so that a place needs no sum over the groups before.
__device__ __forceinline__ int first_place(const Groups& groups, int group, int side) {
  return end_of_group(groups, group - 1) / side + group;
}

inline int row_tiles(const Groups& groups, int side) { return groups.rows / side + groups.count; }

struct RowTile {
  int group, begin;
  int rows;  // to the end of the group; none or fewer: a place without a tile
};

__device__ __forceinline__ RowTile row_tile(const Groups& groups, int place, int side) {
  int low = 0, high = groups.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (first_place(groups, middle, side) <= place) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const int begin = end_of_group(groups, low - 1) + (place - first_place(groups, low, side)) * side;
  return {low, begin, end_of_group(groups, low) - begin};
}

// values[i] = from[i] for i < available, else zero. In one access where `packs`, which the block agrees on.
template <class T, int count>
__device__ __forceinline__ void fetch(Pack<T, count>& values, const T* from, int available, bool packs) {
  if (packs && available >= count) {
    values = *reinterpret_cast<const Pack<T, count>*>(from);
    return;
  }
  for (int i = 0; i < count; ++i) {
    if (i < available) {
      values.value[i] = from[i];
    } else {
      put(&values.value[i], 0);
    }
  }
}

template <int count, class T>
__device__ __forceinline__ bool in_packs(const T* data, int stride) {
  return reinterpret_cast<uintptr_t>(data) % sizeof(Pack<T, count>) == 0 && stride % count == 0;
}

}  // namespace limbeck::kernels
