// Hidden states and weights into the blocks of tile_product.h, the product of those that are float32, and the results
// back.
#pragma once
#include <algorithm>

#include "kernels/cpu/panels.h"
#include "kernels/head_loss/head_loss_loops.h"

namespace limbeck::kernels::LIMBECK_ISA {

// ---- the product for widened operands -----------------------------------------------------------------------------

template <int Rows>
__attribute__((noinline)) void float_rows(const TileProduct& p, int64_t row, int64_t column) {
  constexpr int64_t lanes = kLanes<float>;
  F32 sum[Rows][2];
  float* c = p.c + row * p.c_stride + column;
  bool add = p.accumulate;
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) sum[r][0] = sum[r][1] = F32{};
  const float* a_start = static_cast<const float*>(p.a) + row * kProductBlock;
  const float* b_start = static_cast<const float*>(p.b) + column;
  for (int64_t s = 0; s < p.segments; ++s) {
    const float* a = a_start + s * p.a_segment_stride;
    const float* b = b_start + s * p.b_segment_stride;
    for (int64_t k = 0; k < p.blocks; ++k, a += p.a_block_stride) {
      for (int64_t i = 0; i < kProductBlock; ++i, b += kProductBlock) {
        const F32 b0 = load(b), b1 = load(b + lanes);
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
          const F32 x = splat(a[r * kProductBlock + i]);
          sum[r][0] = fused(x, b0, sum[r][0]);
          sum[r][1] = fused(x, b1, sum[r][1]);
        }
      }
      const bool last = s + 1 == p.segments && k + 1 == p.blocks;
      if (!last && !p.sum_blocks_apart) continue;
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        float* to = c + r * p.c_stride;
        store(to, add ? load(to) + sum[r][0] : sum[r][0]);
        store(to + lanes, add ? load(to + lanes) + sum[r][1] : sum[r][1]);
        sum[r][0] = sum[r][1] = F32{};
      }
      add = true;
    }
  }
}

template <int Rows>
void float_some_rows(const TileProduct& p, int64_t row, int64_t rows, int64_t column) {
  if (rows == Rows) return float_rows<Rows>(p, row, column);
  if constexpr (Rows > 1) float_some_rows<Rows - 1>(p, row, rows, column);
}

inline void float_rows_in_turn(const TileProduct& p) {
  const int64_t parts = (p.rows + kRows - 1) / kRows;
  for (int64_t column = 0; column < kProductBlock; column += kWidth<float>) {
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t from = i * p.rows / parts;
      float_some_rows<kRows>(p, from, (i + 1) * p.rows / parts - from, column);
    }
  }
}

inline void float_tile_product(const TileProduct& p) {
  constexpr int64_t kBlocks = 7;  // of B: 28 KB, which stay in the first-level cache from one group of rows to the next
  if (p.blocks == 1) return float_rows_in_turn(p);
  TileProduct some = p;
  for (int64_t s = 0; s < p.segments; ++s) {
    for (int64_t k = 0; k < p.blocks; k += kBlocks) {
      some.a = static_cast<const float*>(p.a) + s * p.a_segment_stride + k * p.a_block_stride;
      some.b = static_cast<const float*>(p.b) + s * p.b_segment_stride + k * kProductArea;
      some.segments = 1;
      some.blocks = std::min(kBlocks, p.blocks - k);
      some.accumulate = p.accumulate || s > 0 || k > 0;
      float_rows_in_turn(some);
    }
  }
}

// ---- operands ------------------------------------------------------------------------------------------------------

template <class T>
LIMBECK_INLINE void widen_block(float* to, const T* from, int64_t count) {
  for (int64_t i = 0; i < kProductBlock; i += kLanes<float>) {
    const int64_t some = std::clamp<int64_t>(count - i, 0, kLanes<float>);
    store(to + i, some > 0 ? load_wide_some(from + i, some) : F32{});
  }
}

// Elements [k, k + count) of a row as 32 floats, zeros behind.
LIMBECK_INLINE void read_floats(const HeadOperand& op, int64_t row, int64_t k, float* to) {
  const int64_t count = std::min(kProductBlock, op.depth - k), at = row * op.row_stride + k;
  switch (op.storage) {
    case Storage::kBFloat16:
      return widen_block(to, static_cast<const BFloat16Bits*>(op.data) + at, count);
    case Storage::kFloat16:
      return widen_block(to, static_cast<const Float16Bits*>(op.data) + at, count);
    default:
      return widen_block(to, static_cast<const float*>(op.data) + at, count);
  }
}

LIMBECK_INLINE void read_bits(const HeadOperand& op, int64_t row, int64_t k, uint16_t* to) {
  const int64_t count = op.depth - k;
  const auto* from = static_cast<const uint16_t*>(op.data) + row * op.row_stride + k;
  if (count >= kProductBlock) {
    __builtin_memcpy(to, from, kProductBlock * sizeof(uint16_t));
    return;
  }
  for (int64_t i = 0; i < kProductBlock; ++i) to[i] = i < count ? from[i] : uint16_t{0};
}

inline void pack_left(const HeadOperand& op, int64_t first, int64_t count, void* to) {
  for (int64_t d = 0; d < op.blocks(); ++d) {
    char* block = static_cast<char*>(to) + d * kHeadArea * op.element();
    for (int64_t r = 0; r < count; ++r) {
      if (op.pairs) {
        read_bits(op, first + r, d * kProductBlock, reinterpret_cast<uint16_t*>(block) + r * kProductBlock);
      } else {
        read_floats(op, first + r, d * kProductBlock, reinterpret_cast<float*>(block) + r * kProductBlock);
      }
    }
    const int64_t filled = count * kProductBlock * op.element();
    __builtin_memset(block + filled, 0, static_cast<size_t>(kHeadArea * op.element() - filled));
  }
}

inline void pack_right(const HeadOperand& op, const int64_t* index, int64_t first, int64_t count, void* to,
                       int64_t stride) {
  const auto row = [&](int64_t i) { return index ? index[i] : first + i; };
  for (int64_t d = 0; d < op.blocks(); ++d) {
    if (op.pairs) {
      auto* block = static_cast<uint32_t*>(to) + d * stride / 2;
      for (int64_t i = 0; i < kProductBlock; i += 2, block += kProductBlock) {
        alignas(64) uint16_t even[kProductBlock] = {}, odd[kProductBlock] = {};
        if (i < count) read_bits(op, row(i), d * kProductBlock, even);
        if (i + 1 < count) read_bits(op, row(i + 1), d * kProductBlock, odd);
        for (int64_t k = 0; k < kProductBlock; k += kLanes<float>) {
          U16 low, high;
          __builtin_memcpy(&low, even + k, sizeof low);
          __builtin_memcpy(&high, odd + k, sizeof high);
          const U32 both = widen(low) | (widen(high) << 16);
          __builtin_memcpy(block + k, &both, sizeof both);
        }
      }
    } else {
      float* block = static_cast<float*>(to) + d * stride;
      for (int64_t i = 0; i < kProductBlock; ++i, block += kProductBlock) {
        if (i < count) {
          read_floats(op, row(i), d * kProductBlock, block);
        } else {
          __builtin_memset(block, 0, kProductBlock * sizeof(float));
        }
      }
    }
  }
}

inline void pack_right_transposed(const HeadOperand& op, const int64_t* index, int64_t count, void* to) {
  for (int64_t d = 0; d < op.blocks(); ++d) {
    if (op.pairs) {
      auto* block = static_cast<uint32_t*>(to) + d * kProductArea / 2;
      for (int64_t i = 0; i < kProductBlock; ++i) {
        uint16_t bits[kProductBlock] = {};
        if (i < count) read_bits(op, index[i], d * kProductBlock, bits);
        uint32_t pairs[kProductBlock / 2];
        __builtin_memcpy(pairs, bits, sizeof pairs);
        for (int64_t k = 0; k < kProductBlock / 2; ++k) block[k * kProductBlock + i] = pairs[k];
      }
    } else {
      float* block = static_cast<float*>(to) + d * kProductArea;
      for (int64_t i = 0; i < kProductBlock; ++i) {
        alignas(64) float row[kProductBlock] = {};
        if (i < count) read_floats(op, index[i], d * kProductBlock, row);
        for (int64_t k = 0; k < kProductBlock; ++k) block[k * kProductBlock + i] = row[k];
      }
    }
  }
}

// ---- results -------------------------------------------------------------------------------------------------------

inline void store_row(const float* from, int64_t stride, int64_t width, Storage storage, void* to) {
  for (int64_t d = 0; d < width; d += kProductBlock, from += stride) {
    for (int64_t i = 0; i < std::min(kProductBlock, width - d); i += kLanes<float>) {
      const int64_t count = std::min(kLanes<float>, width - d - i);
      const F32 x = load(from + i);
      if (storage == Storage::kBFloat16) {
        store_narrow_some(static_cast<BFloat16Bits*>(to) + d + i, x, count);
      } else if (storage == Storage::kFloat16) {
        store_narrow_some(static_cast<Float16Bits*>(to) + d + i, x, count);
      } else {
        store_narrow_some(static_cast<float*>(to) + d + i, x, count);
      }
    }
  }
}

}  // namespace limbeck::kernels::LIMBECK_ISA
