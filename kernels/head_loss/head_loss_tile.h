// The passes over the logits of one tile and one block, in cache.
#pragma once
#include <algorithm>

#include "kernels/cpu/panels.h"
#include "kernels/head_loss/head_loss_formula.h"

namespace limbeck::kernels::LIMBECK_ISA {

// Kahan's sum: `lost` is what the roundings have added too much.
LIMBECK_INLINE void add_keeping_error(F& sum, F& lost, F x) {
  const F y = x - lost, t = sum + y;
  lost = (t - sum) - y;
  sum = t;
}

inline void tile_statistics(const HeadFormula& f, const float* student, const float* teacher, const int32_t* labels,
                            int64_t first_column, int64_t columns, float* out) {
  const bool plain_softmax = f.has_ce && !f.ce_shares;
  for (int64_t j = 0; j < kHeadBlock; j += kLanes<float>) {
    F highest_s = splat(-__builtin_inff()), highest_t = highest_s, highest_p = highest_s;
    F slope;
    for (int64_t v = 0; v < columns; ++v) {
      const F u = plain_logit(load(student + v * kHeadBlock + j), f.student_scale, f.student_cap, &slope);
      highest_p = larger(u, highest_p);
      if (f.has_softmax) {
        highest_s = larger(tempered_logit(u, f, &slope), highest_s);
        const F w = plain_logit(load(teacher + v * kHeadBlock + j), f.teacher_scale, f.teacher_cap, &slope);
        highest_t = larger(tempered_logit(w, f, &slope), highest_t);
      }
    }
    F sum_s{}, sum_t{}, sum_p{}, total_p{}, label_logit{};
    I32 label;
    __builtin_memcpy(&label, labels + j, sizeof label);
    label -= static_cast<int32_t>(first_column);
    // Sums of 8 columns, added with their rounding errors kept: a chain of 224 roundings would shift the two
    // log-sum-exps against each other, and the gradient of forward KL is no better than their difference.
    constexpr int64_t kColumns = 8;
    F lost_s{}, lost_t{}, lost_p{}, lost_total{};
    for (int64_t block = 0; block < columns; block += kColumns) {
      F part_s{}, part_t{}, part_p{}, part_total{};
      for (int64_t v = block; v < std::min(block + kColumns, columns); ++v) {
        const F u = plain_logit(load(student + v * kHeadBlock + j), f.student_scale, f.student_cap, &slope);
        if (f.has_softmax) {
          part_s += exp_of_nonpositive(tempered_logit(u, f, &slope) - highest_s);
          const F w = plain_logit(load(teacher + v * kHeadBlock + j), f.teacher_scale, f.teacher_cap, &slope);
          part_t += exp_of_nonpositive(tempered_logit(w, f, &slope) - highest_t);
        }
        if (plain_softmax) part_p += exp_of_nonpositive(u - highest_p);
        if (f.has_ce) {
          part_total += u;
          label_logit = label == static_cast<int32_t>(v) ? u : label_logit;
        }
      }
      add_keeping_error(sum_s, lost_s, part_s);
      add_keeping_error(sum_t, lost_t, part_t);
      add_keeping_error(sum_p, lost_p, part_p);
      add_keeping_error(total_p, lost_total, part_total);
    }
    const auto put = [&](int64_t what, F x) { store(out + what * kHeadBlock + j, x); };
    put(kStudentMax, highest_s);
    put(kStudentSum, sum_s);
    put(kStudentLost, lost_s);
    put(kTeacherMax, highest_t);
    put(kTeacherSum, sum_t);
    put(kTeacherLost, lost_t);
    put(kPlainMax, highest_p);
    put(kPlainSum, sum_p);
    put(kPlainLost, lost_p);
    put(kPlainTotal, total_p);
    put(kLabelLogit, label_logit);
  }
}

inline void merge_statistics(const float* tile, HeadRunning& all) {
  for (int64_t which = 0; which < 3; ++which) {
    alignas(64) float mine[kHeadBlock], theirs[kHeadBlock];
    const float* max = tile + 3 * which * kHeadBlock;
    const float *sum = max + kHeadBlock, *lost = sum + kHeadBlock;
    for (int64_t j = 0; j < kHeadBlock; j += kLanes<float>) {
      const F before = load(all.max[which] + j), other = load(max + j), now = larger(before, other);
      store(mine + j, exp_of_nonpositive(before - now));
      store(theirs + j, exp_of_nonpositive(other - now));
      store(all.max[which] + j, now);
    }
    for (int64_t i = 0; i < kHeadBlock; ++i) {
      all.sum[which][i] = all.sum[which][i] * static_cast<double>(mine[i]) +
                          (static_cast<double>(sum[i]) - static_cast<double>(lost[i])) * static_cast<double>(theirs[i]);
    }
  }
  for (int64_t i = 0; i < kHeadBlock; ++i) {
    all.plain_total[i] += static_cast<double>(tile[kPlainTotal * kHeadBlock + i]);
    all.label_logit[i] += static_cast<double>(tile[kLabelLogit * kHeadBlock + i]);
  }
}

// ---- dz into the forms of the two products ------------------------------------------------------------------------

LIMBECK_INLINE void store_bits(uint16_t* to, F rounded) {
  const U16 raw = upper_halves((U32)rounded);
  __builtin_memcpy(to, &raw, sizeof raw);
}

LIMBECK_INLINE F rounded_to_bf16(F x) {
  const auto rounded = (F)(rounded_to_upper_half((U32)x) & 0xffff0000u);
  return x == x ? rounded : x + x;  // a NaN is quiet, so that its upper half remains one
}

// dz [32 columns][32 tokens] of the block number `block` of the tile.
LIMBECK_INLINE void put_gradients(const HeadChunk& chunk, int64_t block, const float* dz) {
  constexpr int64_t lanes = kLanes<float>;
  const int64_t at = block * kProductArea;
  if (chunk.by_column) {
    for (int64_t i = 0; i < kProductArea; i += lanes) {
      const F x = load(dz + i);
      if (chunk.pairs) {
        store_bits(static_cast<uint16_t*>(chunk.by_column) + at + i, x);
      } else {
        store(static_cast<float*>(chunk.by_column) + at + i, x);
      }
    }
  }
  if (!chunk.by_token) return;
  for (int64_t v = 0; v < kHeadBlock; v += lanes) {
    for (int64_t n = 0; n < kHeadBlock; n += lanes) {
      F square[lanes];
#pragma GCC unroll 16
      for (int64_t i = 0; i < lanes; ++i) square[i] = load(dz + (v + i) * kHeadBlock + n);
      transpose_step<float, lanes / 2>(square);
#pragma GCC unroll 16
      for (int64_t i = 0; i < lanes; ++i) {
        const int64_t to = at + (n + i) * kHeadBlock + v;
        if (chunk.pairs) {
          store_bits(static_cast<uint16_t*>(chunk.by_token) + to, square[i]);
        } else {
          store(static_cast<float*>(chunk.by_token) + to, square[i]);
        }
      }
    }
  }
}

// ---- values and gradients ------------------------------------------------------------------------------------------

// Up to 32 columns of `columns` for the lanes from j on; dz [32][32].
template <Divergence Kind, bool Value, bool Gradient>
LIMBECK_INLINE void block_terms(const HeadFormula& f, const HeadChunk& chunk, int64_t block, int64_t columns, int64_t j,
                                float* dz) {
  const auto row = [&](int64_t what) { return load(chunk.constants + what * kHeadBlock + j); };
  const RowLanes lanes{row(kRowStudentMax),     row(kRowStudentInverse), row(kRowTeacherMax),
                       row(kRowTeacherInverse), row(kRowShift),          row(kRowMeanSlope)};
  const F weight = row(kRowDivergenceWeight), ce_weight = row(kRowCeWeight);
  const F plain_max = row(kRowPlainMax), plain_inverse = row(kRowPlainInverse);
  const bool with_ce = Gradient && f.has_ce;
  const F even_share = splat(f.smoothing / static_cast<float>(f.vocabulary));
  const F label_share = splat(1.0f - f.smoothing) + even_share;
  I32 label;
  __builtin_memcpy(&label, chunk.labels + j, sizeof label);
  label -= static_cast<int32_t>(chunk.first_column + block * kHeadBlock);
  F value{}, mean_slope{};
  const float* student = chunk.student + block * kProductArea + j;
  const float* teacher = chunk.teacher + block * kProductArea + j;
  for (int64_t v = 0; v < columns; ++v) {
    F plain_slope, slope, unused;
    const F u = plain_logit(load(student + v * kHeadBlock), f.student_scale, f.student_cap, &plain_slope);
    Terms t{};
    slope = F{};
    if constexpr (Kind != Divergence::kNone) {
      const F a = tempered_logit(u, f, &slope);
      const F w = plain_logit(load(teacher + v * kHeadBlock), f.teacher_scale, f.teacher_cap, &unused);
      t = logit_terms<Kind>(a, tempered_logit(w, f, &unused), lanes, f.mix, with_ce && f.ce_shares);
    }
    if constexpr (Value) {
      value += t.value;
      mean_slope += t.slope;
    }
    if constexpr (Gradient) {
      F g = Kind == Divergence::kNone ? F{} : slope * (weight * t.gradient);
      if (with_ce) {
        const F p = f.ce_shares ? t.student : exp_of_nonpositive(u - plain_max) * plain_inverse;
        g += ce_weight * (p - (label == static_cast<int32_t>(v) ? label_share : even_share));
      }
      g *= plain_slope;
      store(dz + v * kHeadBlock + j, chunk.pairs ? rounded_to_bf16(g) : g);
    }
  }
  if constexpr (Value) {
    store(chunk.values + j, load(chunk.values + j) + value);
    store(chunk.values + kHeadBlock + j, load(chunk.values + kHeadBlock + j) + mean_slope);
  }
}

template <Divergence Kind, bool Value, bool Gradient>
__attribute__((noinline)) void tile_terms(const HeadFormula& f, const HeadChunk& chunk) {
  if constexpr (Value) __builtin_memset(chunk.values, 0, 2 * kHeadBlock * sizeof(float));
  for (int64_t block = 0; block < kHeadTileBlocks; ++block) {
    const int64_t columns = std::clamp<int64_t>(f.vocabulary - chunk.first_column - block * kHeadBlock, 0, kHeadBlock);
    alignas(64) float dz[kProductArea];
    if (Gradient && columns < kHeadBlock) __builtin_memset(dz, 0, sizeof dz);
    for (int64_t j = 0; j < kHeadBlock; j += kLanes<float>) {
      block_terms<Kind, Value, Gradient>(f, chunk, block, columns, j, dz);
    }
    if constexpr (Gradient) put_gradients(chunk, block, dz);
  }
}

// Divergences whose gradient needs the mean slope first have their values made in a pass of their own.
template <Divergence Kind>
void tile_of_kind(const HeadFormula& f, const HeadChunk& chunk) {
  const bool gradient = chunk.by_column || chunk.by_token;
  if (!gradient) return tile_terms<Kind, true, false>(f, chunk);
  tile_terms<Kind, !needs_mean_slope(Kind), true>(f, chunk);
}

inline void tile_pass(const HeadFormula& f, const HeadChunk& chunk) {
  with_divergence(f.divergence, [&](auto tag) { tile_of_kind<decltype(tag)::kKind>(f, chunk); });
}

}  // namespace limbeck::kernels::LIMBECK_ISA
