// In the place of the CUDA toolkit's header: products of small matrices by a warp. A lane has four rows by two columns
// of the sums, and of the factors what these need.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdlib>
#include <type_traits>

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

inline constexpr int kFakeSide = 16, kFakeRows = 4, kFakeColumns = 2;
inline int fake_row() { return limbeck::fake_cuda::lane() / (kFakeSide / kFakeColumns) * kFakeRows; }
inline int fake_column() { return limbeck::fake_cuda::lane() % (kFakeSide / kFakeColumns) * kFakeColumns; }

inline float fake_widened(__half value) { return __half2float(value); }
inline float fake_widened(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class Use, int rows, int columns, int depth, class T, class Layout = void>
struct fragment;
template <int rows, int columns, int depth, class T, class Layout>
struct fragment<matrix_a, rows, columns, depth, T, Layout> {
  static_assert(rows == kFakeSide && columns == kFakeSide && depth == kFakeSide);
  float value[kFakeRows][kFakeSide];
};
template <int rows, int columns, int depth, class T, class Layout>
struct fragment<matrix_b, rows, columns, depth, T, Layout> {
  static_assert(rows == kFakeSide && columns == kFakeSide && depth == kFakeSide);
  float value[kFakeSide][kFakeColumns];
};
template <int rows, int columns, int depth, class T>
struct fragment<accumulator, rows, columns, depth, T> {
  static_assert(rows == kFakeSide && columns == kFakeSide && depth == kFakeSide);
  T value[kFakeRows][kFakeColumns];
};

// Addresses at multiples of 32 bytes, rows of the matrix at multiples of 16.
inline void check_fake_place(const void* from, size_t bytes_between) {
  if (reinterpret_cast<uintptr_t>(from) % 32 == 0 && bytes_between % 16 == 0) return;
  std::fprintf(stderr, "a fragment at %p with rows %zu bytes apart, wanted multiples of 32 and 16\n", from,
               bytes_between);
  std::abort();
}

// to = the part of the matrix that begins at a row and a column.
template <class Layout, class T, int height, int width>
void fake_load(float (&to)[height][width], const T* from, unsigned stride, int row, int column) {
  check_fake_place(from, stride * sizeof(T));
  for (int i = 0; i < height; ++i) {
    for (int j = 0; j < width; ++j) {
      const unsigned at_row = row + i, at_column = column + j;
      to[i][j] = fake_widened(
          from[std::is_same_v<Layout, row_major> ? at_row * stride + at_column : at_column * stride + at_row]);
    }
  }
}

template <int rows, int columns, int depth, class T, class Layout>
void load_matrix_sync(fragment<matrix_a, rows, columns, depth, T, Layout>& to, const T* from, unsigned stride) {
  fake_load<Layout>(to.value, from, stride, fake_row(), 0);
}
template <int rows, int columns, int depth, class T, class Layout>
void load_matrix_sync(fragment<matrix_b, rows, columns, depth, T, Layout>& to, const T* from, unsigned stride) {
  fake_load<Layout>(to.value, from, stride, 0, fake_column());
}

template <int rows, int columns, int depth, class T>
void fill_fragment(fragment<accumulator, rows, columns, depth, T>& sums, T value) {
  for (auto& row : sums.value) {
    for (T& sum : row) sum = value;
  }
}

template <int rows, int columns, int depth, class S, class T, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, rows, columns, depth, S>& to,
              const fragment<matrix_a, rows, columns, depth, T, LayoutA>& a,
              const fragment<matrix_b, rows, columns, depth, T, LayoutB>& b,
              const fragment<accumulator, rows, columns, depth, S>& sums) {
  for (int i = 0; i < kFakeRows; ++i) {
    for (int j = 0; j < kFakeColumns; ++j) {
      S sum = sums.value[i][j];
      for (int k = 0; k < kFakeSide; ++k) sum += a.value[i][k] * b.value[k][j];
      to.value[i][j] = sum;
    }
  }
}

template <int rows, int columns, int depth, class T>
void store_matrix_sync(T* to, const fragment<accumulator, rows, columns, depth, T>& sums, unsigned stride,
                       layout_t layout) {
  check_fake_place(to, stride * sizeof(T));
  for (int i = 0; i < kFakeRows; ++i) {
    for (int j = 0; j < kFakeColumns; ++j) {
      const unsigned row = fake_row() + i, column = fake_column() + j;
      to[layout == mem_row_major ? row * stride + column : column * stride + row] = sums.value[i][j];
    }
  }
}

}  // namespace nvcuda::wmma
