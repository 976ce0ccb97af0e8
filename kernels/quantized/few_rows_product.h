// Products with one to eight rows of x, for *_loops.cpp: codes are read once, straight to the sums, without a float32
// weight in memory. A sum is the chain that panels.h makes of it, over blocks of the depth of widened_product.h, so
// that a row has the same bits as among many.
#pragma once
#include "kernels/cpu/widened_product.h"
#include "kernels/quantized/side_by_side.h"

namespace limbeck::kernels::LIMBECK_ISA {

inline constexpr int64_t kMostFewRows = 8;

template <int64_t Depth>
struct FewRowsProduct {
  static constexpr int64_t kStrips = 4;  // vectors of weight rows that share a block of x
  static constexpr int64_t kMostWords = Depth / kValuesOfWord<CodeKind::kInt8>;

  struct Scratch {
    alignas(64) float x[kMostFewRows][Depth];
    alignas(64) uint32_t words[kStrips][kMostWords * kLanes<float>];
    ScaleRuns runs[kStrips];
    alignas(64) float sums[kMostFewRows][kStrips][kLanes<float>];
  };

  // y [rows, columns n0 to n1] = x [rows, k] W^T + bias.
  template <class T>
  static void share(const QuantizedView& v, const Levels& levels, const T* x, int64_t rows, int64_t n0, int64_t n1,
                    const RoundedProduct<T>& to, void* scratch) {
    switch (v.format.kind) {
      case CodeKind::kInt8:
        return of_rows<CodeKind::kInt8, kMostFewRows>(v, levels, x, rows, n0, n1, to, scratch);
      case CodeKind::kInt4:
        return of_rows<CodeKind::kInt4, kMostFewRows>(v, levels, x, rows, n0, n1, to, scratch);
      case CodeKind::kNf4:
        return of_rows<CodeKind::kNf4, kMostFewRows>(v, levels, x, rows, n0, n1, to, scratch);
    }
  }

 private:
  template <CodeKind kind, int Rows, class T>
  static void of_rows(const QuantizedView& v, const Levels& levels, const T* x, int64_t rows, int64_t n0, int64_t n1,
                      const RoundedProduct<T>& to, void* scratch) {
    if (rows == Rows) {
      auto& own = *static_cast<Scratch*>(scratch);
      for (int64_t n = n0; n < n1; n += kStrips * kLanes<float>) columns<kind, Rows>(v, levels, x, n, n1, to, own);
      return;
    }
    if constexpr (Rows > 1) of_rows<kind, Rows - 1>(v, levels, x, rows, n0, n1, to, scratch);
  }

  template <CodeKind kind, int Rows, class T>
  static void columns(const QuantizedView& v, const Levels& levels, const T* x, int64_t n0, int64_t n1,
                      const RoundedProduct<T>& to, Scratch& own) {
    constexpr int64_t lanes = kLanes<float>;
    // Enough chains of sums to hide the latency of an addition, few enough for the registers.
    constexpr int kTogether = Rows <= 2 ? 4 : Rows <= 4 ? 2 : 1;
    const int64_t strips = std::min(kStrips, rounded_up_quotient(n1 - n0, lanes));
    for (int64_t k = 0; k < v.columns; k += Depth) {
      const int64_t depth = std::min(Depth, v.columns - k);
      for (int r = 0; r < Rows; ++r) {
        for (int64_t i = 0; i < depth; i += lanes)
          store(own.x[r] + i, load_wide_some(x + r * v.columns + k + i, depth - i));
      }
      for (int64_t s = 0; s < kStrips; ++s) {
        const int64_t n = n0 + s * lanes, count = std::clamp<int64_t>(n1 - n, 0, lanes);
        if (count > 0) {
          gather_words<kind>(v, n, count, k, depth, own.words[s]);
          ask_for_next_block<kind>(v, n, k, depth, kStrips * lanes);
        }
        gather_scales<kind>(v, n, count, k, depth, levels, own.runs[s]);
      }
      for (int64_t s = 0; s < strips; s += kTogether) add_block<kind, Rows, kTogether>(v, levels, k, depth, s, own);
    }
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t n = n0 + s * lanes, count = std::min(lanes, n1 - n);
      const F32 bias = to.bias ? load_wide_some(to.bias + n, count) : F32{};
      for (int r = 0; r < Rows; ++r) store_narrow_some(to.c + r * to.ldc + n, load(own.sums[r][s]) + bias, count);
    }
  }

  // Adds the block of x and words at column k to the sums of strips [strip, strip + Together).
  template <CodeKind kind, int Rows, int Together>
  static __attribute__((noinline)) void add_block(const QuantizedView& v, const Levels& levels, int64_t k,
                                                  int64_t depth, int64_t strip, Scratch& own) {
    constexpr int64_t lanes = kLanes<float>;
    constexpr int per_word = kValuesOfWord<kind>;
    F32 sum[Rows][Together];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
      for (int s = 0; s < Together; ++s) sum[r][s] = F32{};
    }
    for_scale_runs<kind>(
        v, k, depth, [&](int64_t run, int64_t begin, int64_t end) __attribute__((always_inline)) {
          LaneScales scales[Together];
#pragma GCC unroll 4
          for (int s = 0; s < Together; ++s) scales[s] = own.runs[strip + s].of(run);
          const auto add = [&](int64_t at, const U32(&word)[Together], int place) __attribute__((always_inline)) {
            F32 value[Together];
#pragma GCC unroll 4
            for (int s = 0; s < Together; ++s) value[s] = values_of_words<kind>(word[s], place, scales[s], levels);
#pragma GCC unroll 8
            for (int r = 0; r < Rows; ++r) {
              const F32 of_x = splat(own.x[r][at]);
#pragma GCC unroll 4
              for (int s = 0; s < Together; ++s) sum[r][s] = fused(of_x, value[s], sum[r][s]);
            }
          };
          for (int64_t at = begin; at < end; at += per_word) {
            U32 word[Together];
#pragma GCC unroll 4
            for (int s = 0; s < Together; ++s) word[s] = load(own.words[strip + s] + at / per_word * lanes);
            if (at + per_word <= end) {
#pragma GCC unroll 8
              for (int i = 0; i < per_word; ++i) add(at + i, word, i);
            } else {
              for (int i = 0; i < end - at; ++i) add(at + i, word, i);
            }
          }
        });
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
      for (int s = 0; s < Together; ++s) {
        float* to = own.sums[r][strip + s];
        store(to, k > 0 ? load(to) + sum[r][s] : sum[r][s]);
      }
    }
  }
};

}  // namespace limbeck::kernels::LIMBECK_ISA
