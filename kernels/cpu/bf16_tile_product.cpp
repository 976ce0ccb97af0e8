#include <cstdlib>
#include <string_view>
#include <type_traits>

#include "kernels/cpu/tile_product.h"
#include "kernels/cpu/vector_targets.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LIMBECK_HAS_BF16_PRODUCTS 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace limbeck::kernels {
namespace {

#ifdef LIMBECK_HAS_BF16_PRODUCTS

// ---- AVX512-BF16: rows x 32 accumulators in registers, a pair of A broadcast ---------------------------------------

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")

constexpr int64_t kMostRows = 14;  // 28 accumulators, two columns of B, one pair of A

template <int Rows>
__attribute__((noinline)) void vector_rows(const TileProduct& p, int64_t row) {
  __m512 sum[Rows][2];
  float* c = p.c + row * kProductBlock;
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    sum[r][0] = p.accumulate ? _mm512_loadu_ps(c + r * kProductBlock) : _mm512_setzero_ps();
    sum[r][1] = p.accumulate ? _mm512_loadu_ps(c + r * kProductBlock + 16) : _mm512_setzero_ps();
  }
  const auto* a_start = static_cast<const uint16_t*>(p.a) + row * kProductBlock;
  const auto* b_start = static_cast<const uint16_t*>(p.b);
  for (int64_t s = 0; s < p.segments; ++s) {
    const uint16_t* a = a_start + s * p.a_segment_stride;
    const uint16_t* b = b_start + s * p.b_segment_stride;
    for (int64_t k = 0; k < p.blocks; ++k, a += p.a_block_stride) {
      for (int pair = 0; pair < kProductBlock / 2; ++pair, b += 2 * kProductBlock) {
        const auto b0 = (__m512bh)_mm512_loadu_si512(b), b1 = (__m512bh)_mm512_loadu_si512(b + kProductBlock);
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
          int32_t both;
          __builtin_memcpy(&both, a + r * kProductBlock + 2 * pair, sizeof both);
          const auto x = (__m512bh)_mm512_set1_epi32(both);
          sum[r][0] = _mm512_dpbf16_ps(sum[r][0], x, b0);
          sum[r][1] = _mm512_dpbf16_ps(sum[r][1], x, b1);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    _mm512_storeu_ps(c + r * kProductBlock, sum[r][0]);
    _mm512_storeu_ps(c + r * kProductBlock + 16, sum[r][1]);
  }
}

template <int Rows>
void some_rows(const TileProduct& p, int64_t row, int64_t rows) {
  if (rows == Rows) return vector_rows<Rows>(p, row);
  if constexpr (Rows > 1) some_rows<Rows - 1>(p, row, rows);
}

void vector_product(const TileProduct& p) {
  // Equal shares: 32 rows are 11 + 11 + 10, not 14 + 14 + 4.
  const int64_t parts = (p.rows + kMostRows - 1) / kMostRows;
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t from = i * p.rows / parts;
    some_rows<kMostRows>(p, from, (i + 1) * p.rows / parts - from);
  }
}
#pragma GCC pop_options

// ---- AMX: 2 x 2 tiles of 16 x 16
// -------------------------------------------------------------------------------------

#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16")

struct alignas(64) TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_a_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

void amx_product(const TileProduct& p) {
  static const TileConfiguration configuration;
  constexpr int64_t kHalf = 16, kFloatRow = kProductBlock * sizeof(float), kPairRow = 2 * kProductBlock * 2;
  _tile_loadconfig(&configuration);
  for (int64_t row = 0; row < p.rows; row += kProductBlock) {
    float* c = p.c + row * kProductBlock;
    if (p.accumulate) {
      _tile_loadd(0, c, kFloatRow);
      _tile_loadd(1, c + kHalf, kFloatRow);
      _tile_loadd(2, c + kHalf * kProductBlock, kFloatRow);
      _tile_loadd(3, c + kHalf * kProductBlock + kHalf, kFloatRow);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t s = 0; s < p.segments; ++s) {
      const uint16_t* a = static_cast<const uint16_t*>(p.a) + s * p.a_segment_stride + row * kProductBlock;
      const uint16_t* b = static_cast<const uint16_t*>(p.b) + s * p.b_segment_stride;
      for (int64_t k = 0; k < p.blocks; ++k, a += p.a_block_stride, b += kProductArea) {
        _tile_loadd(4, a, kProductBlock * 2);
        _tile_loadd(6, b, kPairRow);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + kProductBlock, kPairRow);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + kHalf * kProductBlock, kProductBlock * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, c, kFloatRow);
    _tile_stored(1, c + kHalf, kFloatRow);
    _tile_stored(2, c + kHalf * kProductBlock, kFloatRow);
    _tile_stored(3, c + kHalf * kProductBlock + kHalf, kFloatRow);
  }
  _tile_release();
}
#pragma GCC pop_options

// Linux hands out the tile registers on request, once for the process.
bool amx_granted() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

MatrixTarget best_matrix_target() {
  if (vector_target() != VectorTarget::kAvx512) return MatrixTarget::kNone;
  const char* cap = std::getenv("LIMBECK_VECTOR");
  const std::string_view name = cap ? cap : "";
  if (name == "avx512" || !__builtin_cpu_supports("avx512bf16")) return MatrixTarget::kNone;
  if (name == "avx512_bf16" || !amx_granted()) return MatrixTarget::kAvx512Bf16;
  return MatrixTarget::kAmx;
}
#else
MatrixTarget best_matrix_target() { return MatrixTarget::kNone; }
#endif

}  // namespace

MatrixTarget matrix_target() {
  static const MatrixTarget target = best_matrix_target();
  return target;
}

void bf16_tile_product(const TileProduct& p) {
#ifdef LIMBECK_HAS_BF16_PRODUCTS
  if (matrix_target() == MatrixTarget::kAmx) return amx_product(p);
  if (matrix_target() == MatrixTarget::kAvx512Bf16) return vector_product(p);
#endif
  (void)p;
  std::abort();  // no caller packs bfloat16 pairs on such a processor
}

}  // namespace limbeck::kernels
