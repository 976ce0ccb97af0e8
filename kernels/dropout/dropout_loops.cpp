#include "kernels/dropout/dropout_loops.h"

#include "kernels/cpu/blocks.h"

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

constexpr int64_t kStretch = 128;  // elements whose factors are made together

// 0 or `scale` for the elements [begin, begin + kStretch) of a row.
template <class S>
LIMBECK_INLINE void make_factors(uint64_t row, int64_t begin, uint32_t threshold, S scale, S* factors) {
  uint64_t pairs[kStretch / 2];
  for (int64_t i = 0; i < kStretch / 2; ++i) pairs[i] = pair_bits(row, begin / 2 + i);
  uint32_t bits[kStretch];
  for (int64_t i = 0; i < kStretch / 2; ++i) {
    bits[2 * i] = static_cast<uint32_t>(pairs[i]);
    bits[2 * i + 1] = static_cast<uint32_t>(pairs[i] >> 32);
  }
  for (int64_t i = 0; i < kStretch; ++i) factors[i] = bits[i] >= threshold ? scale : S(0);
}

template <class T>
LIMBECK_INLINE void drop_rows(const DropoutArguments& a, int64_t row_begin, int64_t row_end) {
  using S = Compute<T>;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* x = static_cast<const T*>(a.x) + row * a.x_row;
    T* out = static_cast<T*>(a.out) + row * a.width;
    const uint64_t key = row_key(a.key, a.tokens[row]);
    for (int64_t begin = 0; begin < a.width; begin += kStretch) {
      S factors[kStretch];
      make_factors(key, begin, a.threshold, static_cast<S>(a.scale), factors);
      const int64_t count = a.width - begin < kStretch ? a.width - begin : kStretch;
      for_blocks(count, [&](int64_t i, auto extent, auto) {
        store(out + begin + i, load(x + begin + i, extent) * load(factors + i, extent), extent);
      });
    }
  }
}

void drop(Storage storage, const DropoutArguments& a, int64_t begin, int64_t end) {
  with_storage(storage, [&](auto tag) { drop_rows<typename decltype(tag)::Type>(a, begin, end); });
}

}  // namespace

const DropoutLoops dropout_loops = {drop};

}  // namespace limbeck::kernels::LIMBECK_ISA
