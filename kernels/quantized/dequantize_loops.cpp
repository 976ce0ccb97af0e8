// What codes stand for: neighbours of a row in the lanes of a vector. The values are those of quantized_formula.h to
// the bit.
#include "kernels/quantized/dequantize_loops.h"

#include <algorithm>

#include "kernels/quantized/product_words.h"

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

template <CodeKind kind>
using Group = FloatWords<false>::Group<kind>;
constexpr int64_t kLanesHere = kLanes<float>;

// Of one column after another, wherever they lie.
template <CodeKind kind>
void unpack_slowly(const Unpacking& u, int64_t row, float* values) {
  const QuantizedView& v = u.matrix;
  for (int64_t i = u.column0; i < u.column1;) {
    const ValueScale scale = scale_at<kind>(v, row, i, u.dynamic_levels);
    const int64_t stop = std::min(u.column1, end_of_scale<kind>(v, row, i));
    for (; i < stop; ++i) values[i - u.column0] = value_of<kind>(code_at<kind>(v, row, i), scale, u.nf4_levels);
  }
}

// As many bytes as half the lanes, each in two of them; `have` of them are there.
LIMBECK_INLINE U32 bytes_twice(const uint8_t* from, int64_t have) {
  alignas(16) uint8_t bytes[16] = {};
  if (have >= kLanesHere / 2) {
    __builtin_memcpy(bytes, from, kLanesHere / 2);
  } else {
    for (int64_t i = 0; i < have; ++i) bytes[i] = from[i];
  }
#if defined(__AVX512F__)
  const __m128i once = _mm_load_si128(reinterpret_cast<const __m128i*>(bytes));
  return (U32)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_unpacklo_epi8(once, once));
#elif defined(__AVX2__)
  const __m128i once = _mm_load_si128(reinterpret_cast<const __m128i*>(bytes));
  return (U32)_mm256_cvtepu8_epi32(_mm_unpacklo_epi8(once, once));
#else
  U32 twice;
  for (int64_t i = 0; i < kLanesHere; ++i) twice[i] = bytes[i / 2];
  return twice;
#endif
}

// Codes of neighbours in the low four bits of the lanes.
template <CodeKind kind>
LIMBECK_INLINE U32 codes_apart(const uint8_t* from, int64_t have) {
  U32 places{};
  for (uint32_t i = 0; i < kLanesHere; ++i) places[i] = (kind == CodeKind::kNf4) == (i % 2 == 0) ? 4 : 0;
  return bytes_twice(from, have) >> places;
}

LIMBECK_INLINE F32 int8_values(const int8_t* from, int64_t have, F32 scale) {
  alignas(16) int8_t bytes[16] = {};
  __builtin_memcpy(bytes, from, static_cast<size_t>(std::min(have, kLanesHere)));
  I32 codes{};
#if defined(__AVX512F__)
  codes = (I32)_mm512_maskz_cvtepi8_epi32(0xffff, _mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
#else
  for (int64_t i = 0; i < kLanesHere; ++i) codes[i] = bytes[i];
#endif
  return __builtin_convertvector(codes, F32) * scale;
}

// Columns [begin, end) of a row, which have one scale.
template <CodeKind kind>
LIMBECK_INLINE void unpack_run(const QuantizedView& v, const Levels& levels, int64_t row, int64_t begin, int64_t end,
                               float* values) {
  const ValueScale scale = scale_at<kind>(v, row, begin, levels.dynamic);
  const auto* codes = static_cast<const uint8_t*>(v.codes) + row * row_bytes<kind>(v);
  if constexpr (kind == CodeKind::kInt8) {
    const auto* from = reinterpret_cast<const int8_t*>(codes);
    for (int64_t i = begin; i < end; i += kLanesHere)
      store_narrow_some(values + i - begin, int8_values(from + i, end - i, splat(scale.scale)), end - i);
    return;
  }
  const Group<kind> group(scale.scale, scale.zero, levels);
  const auto unpack = [&](const uint8_t* nibbles, int64_t have, int64_t from, int64_t to)
      __attribute__((always_inline)) {
    for (int64_t i = from; i < to; i += kLanesHere) {
      const int64_t byte = (i - from) / 2;
      store_narrow_some(values + i - begin, group.chosen(codes_apart<kind>(nibbles + byte, have - byte)), to - i);
    }
  };
  if (kind == CodeKind::kNf4 || v.format.bits == 4)
    return unpack(codes + begin / 2, row_bytes<kind>(v) - begin / 2, begin, end);
  for (int64_t i = begin; i < end; i += kBlockCodes) {
    uint32_t words[kNibbleWords] = {}, nibbles[kNibbleWords];
    const int64_t word = i / kBlockCodes * v.format.bits, have = words_of_row(v) - word;
    for (int64_t k = 0; k < std::min<int64_t>(have, v.format.bits); ++k) words[k] = row_words(v, row)[word + k];
    v.format.bits == 3 ? widen_block<3>(words, nibbles) : widen_block<2>(words, nibbles);
    unpack(reinterpret_cast<const uint8_t*>(nibbles), sizeof nibbles, i, std::min(end, i + kBlockCodes));
  }
}

template <CodeKind kind>
void unpack_row(const Unpacking& u, int64_t row, float* values) {
  // Whole blocks of codes begin there, and no byte is divided.
  if (u.column0 % kBlockCodes != 0 || !lies_side_by_side(u.matrix)) return unpack_slowly<kind>(u, row, values);
  for (int64_t i = u.column0; i < u.column1;) {
    const int64_t stop = std::min(u.column1, end_of_scale<kind>(u.matrix, row, i));
    unpack_run<kind>(u.matrix, {u.nf4_levels, u.dynamic_levels}, row, i, stop, values + i - u.column0);
    i = stop;
  }
}

void rectangle(const Unpacking& u) {
  const CodeKind kind = u.matrix.format.kind;
  const auto unpack = kind == CodeKind::kInt8   ? unpack_row<CodeKind::kInt8>
                      : kind == CodeKind::kInt4 ? unpack_row<CodeKind::kInt4>
                                                : unpack_row<CodeKind::kNf4>;
  for (int64_t row = u.row0; row < u.row1; ++row) unpack(u, row, u.values + (row - u.row0) * (u.column1 - u.column0));
}

}  // namespace

const DequantizeLoops dequantize_loops = {rectangle};

}  // namespace limbeck::kernels::LIMBECK_ISA
