// Products with few rows of x, for *_loops.cpp: rows of the matrix are read from end to end, and codes go straight to
// the sums, in the order of chained_product.h. A group of 4-bit codes has sixteen values: they are computed once, and
// codes choose among them.
#pragma once
#include "kernels/quantized/chained_product.h"
#include "kernels/quantized/side_by_side.h"

namespace limbeck::kernels::LIMBECK_ISA {

// Columns [n0, n1) of y [rows, stride] = x [rows, columns of the weight] W^T + bias.
template <class T>
struct FewRows {
  const QuantizedView& weight;
  Levels levels;
  const T* x;
  T* y;
  int64_t stride;
  const T* bias;  // or nullptr
  int64_t n0, n1;
};

template <class Words>
class FewRowsProduct {
  using Order = ChainedSums<Words>;

 public:
  static constexpr int64_t kMostRows = Words::kMostFewRows;  // of x: their sums are in registers at once
  static constexpr int64_t kWords = 8192;                    // of x at a time: they stay in the nearest caches
  static constexpr int64_t kStrips = 4;                      // vectors of rows of the matrix that share them
  static constexpr int64_t kMostSums = std::max<int64_t>(8, kMostRows);  // of a block and a row of x
  static constexpr int64_t kMostRuns = 8 * Order::kDepth / kSmallestGroup;
  static constexpr int kMostTogether = 4;
  static constexpr int64_t kBehindRuns = kLanes<float>;  // a last strip's groups are read as if it were whole

  struct Scratch {
    alignas(64) float x[kWords];
    // What each block adds, a chain in a lane: [block and row of x][row of the matrix].
    alignas(64) float sums[kMostSums][kLanes<float>][Order::kChains];
    alignas(64) float totals[kStrips][kMostRows][kLanes<float>];
    alignas(64) float scales[kMostTogether][kMostRuns + kBehindRuns], zeros[kMostTogether][kMostRuns + kBehindRuns];
  };

  template <class T>
  static void share(const FewRows<T>& p, int64_t rows, void* scratch) {
    auto& own = *static_cast<Scratch*>(scratch);
    switch (p.weight.format.kind) {
      case CodeKind::kInt8:
        return of_rows<CodeKind::kInt8, 1, kMostRows>(p, rows, own);
      case CodeKind::kInt4:
        return of_groups<CodeKind::kInt4, kMostGroups>(p, rows, own);
      case CodeKind::kNf4:
        return of_rows<CodeKind::kNf4, std::max<int64_t>(Order::kStrip / kNf4Block, 1), kMostRows>(p, rows, own);
    }
  }

 private:
  template <CodeKind kind>
  using Codes = typename Words::template Codes<kind>;
  template <CodeKind kind, int Groups>
  using Group = typename Words::template Group<kind, Groups>;
  static constexpr int kMostGroups = static_cast<int>(Order::kStrip / kSmallestGroup);  // of a strip
  static constexpr int64_t kLanesHere = kLanes<float>;
  static constexpr int kParts = Words::kVectors;  // vectors that hold the chains
  static constexpr int64_t words_of(int64_t columns) { return columns / 2 * Words::kOfPair; }
  // Rows of the matrix at once: eight sums hide the latency of an addition.
  template <int Rows>
  static constexpr int together_with() {
    constexpr int fit = 8 / (Rows * kParts);
    return fit >= kMostTogether ? kMostTogether : fit >= 2 ? 2 : 1;
  }
  // Columns of x that are arranged at a time, of each of its rows.
  template <int Rows>
  static constexpr int64_t depth_of() {
    return (Rows == 1 ? 8 : Rows == 2 ? 4 : Rows <= 4 ? 2 : 1) * Order::kDepth;
  }

  template <CodeKind kind, int Groups, class T>
  static void of_groups(const FewRows<T>& p, int64_t rows, Scratch& own) {
    if constexpr (Groups > 1) {
      if (Order::kStrip / length_of_run<kind>(p.weight) < Groups) return of_groups<kind, Groups / 2>(p, rows, own);
    }
    of_rows<kind, Groups, kMostRows>(p, rows, own);
  }
  template <CodeKind kind, int Groups, int Rows, class T>
  static void of_rows(const FewRows<T>& p, int64_t rows, Scratch& own) {
    if (rows == Rows) {
      for (int64_t n = p.n0; n < p.n1; n += kStrips * kLanesHere) columns<kind, Groups, Rows>(p, n, own);
      return;
    }
    if constexpr (Rows > 1) of_rows<kind, Groups, Rows - 1>(p, rows, own);
  }

  // Up to kStrips vectors of columns of y, from n0 on.
  template <CodeKind kind, int Groups, int Rows, class T>
  static void columns(const FewRows<T>& p, int64_t n0, Scratch& own) {
    constexpr int64_t depth = depth_of<Rows>(), words = words_of(depth);
    static_assert(Rows * words <= kWords && Rows * depth / Order::kDepth <= kMostSums);
    static_assert(depth <= kMostRuns * kSmallestGroup);
    const int64_t end = std::min(p.n1, n0 + kStrips * kLanesHere), width = p.weight.columns;
    __builtin_memset(own.totals, 0, sizeof own.totals);
    for (int64_t k = 0; k < width; k += depth) {
      const int64_t have = std::min(depth, width - k);
      if (n0 == p.n0 || width > depth) {
        for (int r = 0; r < Rows; ++r) arrange(p.x + r * width + k, have, own.x + r * words);
      }
      for (int64_t n = n0, s = 0; n < end; n += kLanesHere, ++s) {
        add_rows<kind, Groups, Rows>(p.weight, p.levels, n, std::min(kLanesHere, end - n), k, have, own);
        for (int64_t block = 0; block * Order::kDepth < have; ++block) {
          for (int r = 0; r < Rows; ++r) {
            float* total = own.totals[s][r];
            store(total, with_chains(load(total), own.sums[block * Rows + r]));
          }
        }
      }
    }
    for (int64_t n = n0, s = 0; n < end; n += kLanesHere, ++s) {
      const F32 bias = p.bias ? load_wide_some(p.bias + n, end - n) : F32{};
      for (int r = 0; r < Rows; ++r) store_narrow_some(p.y + r * p.stride + n, load(own.totals[s][r]) + bias, end - n);
    }
  }

  template <class T>
  static void arrange(const T* x, int64_t count, float* to) {
    for (int64_t k = 0; k < count; k += Order::kStrip, to += Order::kStripWords) Words::put_pairs(x + k, count - k, to);
  }

  // The sums of rows [n, n + count) of the matrix and columns [k, k + depth).
  template <CodeKind kind, int Groups, int Rows>
  static void add_rows(const QuantizedView& v, const Levels& levels, int64_t n, int64_t count, int64_t k, int64_t depth,
                       Scratch& own) {
    constexpr int64_t together = together_with<Rows>();
    for (int64_t i = 0, rows = together; i < count; i += rows) {
      if (rows > count - i) rows = 1;
      for (int64_t row = 0; row < rows; ++row)
        gather_row_scales<kind>(v, levels, n + i + row, k, depth, own.scales[row], own.zeros[row]);
      for (int64_t at = 0; at < depth; at += Order::kDepth) {
        float* to = own.sums[at / Order::kDepth * Rows][i];
        const int64_t have = std::min(Order::kDepth, depth - at);
        if (rows == together) {
          add_block<kind, Groups, Rows, together>(v, levels, n + i, k, at, have, own, to);
        } else {
          add_block<kind, Groups, Rows, 1>(v, levels, n + i, k, at, have, own, to);
        }
      }
    }
  }

  // Columns of a block with one scale, and which of a row they are.
  template <CodeKind kind>
  static LIMBECK_INLINE int64_t length_of_run(const QuantizedView& v) {
    if (kind == CodeKind::kNf4) return kNf4Block;
    return v.format.has_groups() ? std::min(v.format.group(), Order::kDepth) : Order::kDepth;
  }
  template <CodeKind kind>
  static LIMBECK_INLINE int64_t run_of(const QuantizedView& v, int64_t column) {
    if (kind == CodeKind::kNf4) return column / kNf4Block;
    return v.format.has_groups() ? column >> v.format.group_shift : 0;
  }

  // Of the runs of [column, column + depth).
  template <CodeKind kind>
  static LIMBECK_INLINE void gather_row_scales(const QuantizedView& v, const Levels& levels, int64_t row,
                                               int64_t column, int64_t depth, float* scales, float* zeros) {
    const int64_t first = run_of<kind>(v, column), runs = run_of<kind>(v, column + depth - 1) - first + 1;
    ask_for_scales<kind>(v, row + kScaleRowsAhead, first, runs);
    gather_runs<kind>(v, levels, row, column, first, runs, scales, zeros);
    store(scales + runs, F32{});  // of groups that a last strip lacks: what lies there might be no number
    store(zeros + runs, F32{});
  }
  // Each row's lie too far from the last one's to be foreseen.
  static constexpr int64_t kScaleRowsAhead = 8;
  template <CodeKind kind>
  static LIMBECK_INLINE void ask_for_scales(const QuantizedView& v, int64_t row, int64_t first, int64_t runs) {
    if (v.scale_codes != nullptr || (kind != CodeKind::kNf4 && !v.format.has_groups())) return;
    constexpr int64_t line = 64;
    const int64_t of_row = kind == CodeKind::kNf4 ? v.columns / kNf4Block : groups_of(v);
    const int64_t bytes = v.scale_storage == Storage::kFloat32 ? 4 : 2;
    const auto* from = static_cast<const uint8_t*>(v.scales) + (row * of_row + first) * bytes;
    for (int64_t i = 0; i < runs * bytes; i += line) __builtin_prefetch(from + i);
  }
  template <CodeKind kind>
  static LIMBECK_INLINE void gather_runs(const QuantizedView& v, const Levels& levels, int64_t row, int64_t column,
                                         int64_t first, int64_t runs, float* scales, float* zeros) {
    if (kind == CodeKind::kNf4 || !v.format.has_groups()) {
      for (int64_t run = 0; run < runs; ++run)
        scales[run] = scale_at<kind>(v, row, column + run * kNf4Block, levels.dynamic).scale;
      return;
    }
    // Whole vectors, with what lies behind the runs: only the matrix's last ones are read one by one.
    const int64_t groups = groups_of(v);
    for (int64_t run = 0; run < runs; run += kLanesHere) {
      const int64_t index = row * groups + first + run;
      store(scales + run, load_scales(v, index, v.rows * groups - index));
      if constexpr (kind == CodeKind::kInt4) {
        F32 zero = splat(static_cast<float>(v.format.middle_code()));
        if (v.zeros != nullptr) {
          // As code_in_words() has them: a word holds those of several rows, and groups lie side by side.
          const int64_t bit = row * v.format.bits, word = bit / 32 * groups + first + run;
          const int64_t have = words_of_codes(v.format.bits, v.rows) * groups - word;
          const auto at = static_cast<uint32_t>(bit % 32), bits = static_cast<uint32_t>(v.format.bits);
          const auto* words = reinterpret_cast<const int32_t*>(v.zeros) + word;
          U32 codes = (U32)load_some(words, have) >> at;
          if (at + bits > 32) codes |= (U32)load_some(words + groups, have - groups) << (32 - at);
          zero = __builtin_convertvector((I32)(codes & ((1u << bits) - 1u)), F32);
        }
        store(zeros + run, zero);
      }
    }
  }

  // Codes of 2 or 3 bits of a block of a row, in `bytes` from `stored` on, as nibbles: eight of them begin a byte.
  template <int Bits>
  static LIMBECK_INLINE void widen_row(const uint8_t* stored, int64_t bytes, uint8_t* nibbles) {
    constexpr int64_t whole = Order::kDepth * Bits / 8;
    alignas(64) uint8_t own[whole + kVectorBytes] = {};  // read a vector at a time
    __builtin_memcpy(own, stored, static_cast<size_t>(bytes));
    for (int64_t eight = 0; eight < Order::kDepth / 8; eight += kLanesHere)
      store(reinterpret_cast<uint32_t*>(nibbles) + eight, in_nibbles<Bits>(load_eights<Bits>(own + eight * Bits)));
  }

  // In each lane the next `Bits` bytes; what is above them does not count.
  template <int Bits>
  static LIMBECK_INLINE U32 load_eights(const uint8_t* from) {
    if constexpr (Bits == 2) {
      U16 pairs;
      __builtin_memcpy(&pairs, from, sizeof pairs);
      return widen(pairs);
    } else {
#if defined(__AVX512BW__)
      const __m512i words = {0x0000000100000000, 0x0000000300000002, 0x0000000400000003, 0x0000000600000005,
                             0x0000000700000006, 0x0000000900000008, 0x0000000a00000009, 0x0000000c0000000b};
      const __m512i apart = _mm512_maskz_permutexvar_epi32(0xffff, words, _mm512_loadu_si512(from));
      return (U32)_mm512_shuffle_epi8(apart, _mm512_set4_epi32(0x0b0a09, 0x080706, 0x050403, 0x020100));
#elif defined(__AVX2__)
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      const __m256i apart = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 1, 2, 3, 3, 4, 5, 6));
      const __m128i order = _mm_setr_epi32(0x020100, 0x050403, 0x080706, 0x0b0a09);
      return (U32)_mm256_shuffle_epi8(apart, _mm256_broadcastsi128_si256(order));
#else
      U32 words;
      for (int64_t i = 0; i < kLanesHere; ++i) {
        uint32_t word;
        __builtin_memcpy(&word, from + i * Bits, sizeof word);
        words[i] = word;
      }
      return words;
#endif
    }
  }

  template <int Rows>
  using Sums = F32[Rows][kParts];

  // Adds a strip of a row's codes, by the values of its groups, to the sums with rows of x, `stride` words apart.
  template <CodeKind kind, int Groups, int Rows>
  static LIMBECK_INLINE void add_strip(const Group<kind, Groups>& values, const uint8_t* from, const float* x,
                                       int64_t stride, Sums<Rows>& sums) {
    const Codes<kind> codes(from);
#pragma GCC unroll 4
    for (int i = 0; i < kParts * Order::kTurns; ++i) {
      const typename Words::Pairs pairs = values.of(codes, i);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r)
        sums[r][i % kParts] = Words::add_pairs(x + r * stride + i * kLanesHere, pairs, sums[r][i % kParts]);
    }
  }

  // The sums of `Weights` rows of the matrix from n on and columns [k + at, k + at + depth), x being arranged from k
  // on.
  template <CodeKind kind, int Groups, int Rows, int Weights>
  static __attribute__((noinline)) void add_block(const QuantizedView& v, const Levels& levels, int64_t n, int64_t k,
                                                  int64_t at, int64_t depth, const Scratch& own, float* to) {
    constexpr int64_t per_byte = kind == CodeKind::kInt8 ? 1 : 2, strip = Order::kStrip, strip_bytes = strip / per_byte;
    const int64_t in_row = row_bytes<kind>(v), before = bytes_before<kind>(v, k + at);
    const auto* codes = static_cast<const uint8_t*>(v.codes) + n * in_row + before;
    for (int w = 0; w < Weights; ++w) ask_for_codes(codes + w * in_row, bytes_before<kind>(v, Order::kDepth));
    int64_t row_stride = in_row, whole = depth / strip * strip;
    alignas(64) uint8_t nibbles[Weights][Order::kDepth / 2];  // of codes that are shorter
    if (kind == CodeKind::kInt4 && v.format.bits < 4) {
      const int64_t bytes = std::min(in_row - before, bytes_before<kind>(v, Order::kDepth));
      for (int w = 0; w < Weights; ++w)
        v.format.bits == 3 ? widen_row<3>(codes + w * in_row, bytes, nibbles[w])
                           : widen_row<2>(codes + w * in_row, bytes, nibbles[w]);
      codes = nibbles[0], row_stride = Order::kDepth / 2, whole = rounded_up_quotient(depth, strip) * strip;
    }
    Sums<Rows> sum[Weights] = {};
    const float* x = own.x + words_of(at);
    const int64_t run_length = length_of_run<kind>(v);
    const int64_t groups = kind == CodeKind::kInt8 ? std::max<int64_t>(strip / run_length, 1) : Groups;
    const int64_t first_run = run_of<kind>(v, k + at) - run_of<kind>(v, k);
    const auto add = [&](int64_t run, int64_t begin, int64_t end, const uint8_t* from, int64_t stride)
        __attribute__((always_inline)) {
      const auto group = [&](int w) __attribute__((always_inline)) {
        return Group<kind, Groups>(own.scales[std::min(w, Weights - 1)] + run,
                                   own.zeros[std::min(w, Weights - 1)] + run, levels, groups);
      };
      const Group<kind, Groups> of[kMostTogether] = {group(0), group(1), group(2), group(3)};
      for (int64_t i = begin; i < end; i += strip, from += strip_bytes) {
#pragma GCC unroll 4
        for (int w = 0; w < Weights; ++w)
          add_strip<kind, Groups, Rows>(of[w], from + w * stride, x + words_of(i), words_of(depth_of<Rows>()), sum[w]);
      }
    };
    const int64_t span = groups * run_length;  // of what has the same values; a strip at least
    for (int64_t begin = 0, run = first_run; begin < whole; begin += span, run += groups)
      add(run, begin, std::min(begin + span, whole), codes + begin / per_byte, row_stride);
    if (whole < depth) {  // the row ends within a strip
      alignas(64) uint8_t rest[Weights][strip_bytes] = {};
      for (int w = 0; w < Weights; ++w) {
        __builtin_memcpy(rest[w], codes + w * in_row + whole / per_byte,
                         static_cast<size_t>(in_row - before - whole / per_byte));
      }
      add(first_run + whole / run_length, whole, depth, rest[0], strip_bytes);
    }
#pragma GCC unroll 4
    for (int w = 0; w < Weights; ++w) {
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
        for (int part = 0; part < kParts; ++part)
          store(to + (r * kLanesHere + w) * Order::kChains + part * kLanesHere, sum[w][r][part]);
      }
    }
  }
};

}  // namespace limbeck::kernels::LIMBECK_ISA
