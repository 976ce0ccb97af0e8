// Softmax attention forward for one (batch, key head) and a run of queries, online over blocks of keys.
//
// Key blocks start at multiples of kKeyBlock counted from key 0, and keys that a row does not see add exact zeros. So a
// row's bits depend on its query, its keys and its index alone: not on the other rows, nor on how queries were cut.
#pragma once
#include <algorithm>
#include <limits>

#include "kernels/attention/attention_lanes.h"
#include "kernels/attention/attention_loops.h"
#include "kernels/cpu/elementary.h"
#include "kernels/cpu/panels.h"

namespace limbeck::kernels::LIMBECK_ISA {

constexpr int64_t kKeyBlock = 256;

template <class T>
class ForwardRun {
  using Acc = Compute<T>;
  static constexpr int64_t width = kWidth<Acc>, lanes = kLanes<Acc>;

 public:
  // Queries [q0, q1) of all query heads of key head `head`. A row is one (query, head of the group), query-major.
  ForwardRun(const AttentionForward<T>& f, int64_t b, int64_t head, int64_t q0, int64_t q1)
      : f_(f), s_(f.shape), b_(b), head_(head), q0_(q0), q1_(q1), rows_((q1 - q0) * s_.group()) {
    const int64_t depth_panels = panels<Acc>(s_.depth), value_panels = panels<Acc>(s_.value_depth);
    const int64_t row = rows_ * width;
    const int64_t sizes[] = {depth_panels * row,
                             value_panels * row,
                             s_.depth * kKeyBlock,
                             value_panels * width * kKeyBlock,
                             kRows * kKeyBlock,
                             rows_,
                             rows_};
    Acc** const parts[] = {&q_, &out_, &k_, &v_, &scores_, &max_, &sum_};
    int64_t floats = 0;
    for (const int64_t size : sizes) floats += (size + 15) / 16 * 16;
    Acc* next = static_cast<Acc*>(f.scratch(static_cast<size_t>(floats) * sizeof(Acc)));
    for (int i = 0; i < 7; ++i) {
      *parts[i] = next;
      next += (sizes[i] + 15) / 16 * 16;
    }
  }

  void run() {
    for (int64_t r = 0; r < rows_; ++r) {
      to_panels(q_ + r * width, rows_ * width, f_.q.at(b_, query(r), query_head(r)), 0, 1, s_.depth);
      max_[r] = -std::numeric_limits<Acc>::infinity();
      sum_[r] = 0;
    }
    std::fill(out_, out_ + panels<Acc>(s_.value_depth) * rows_ * width, Acc{0});
    const int64_t first = s_.first_key(q0_) / kKeyBlock * kKeyBlock, last = s_.last_key(q1_ - 1);
    for (int64_t j = first; j < last; j += kKeyBlock) key_block(j, std::min(kKeyBlock, s_.keys - j));
    for (int64_t r = 0; r < rows_; ++r) finish(r);
  }

 private:
  int64_t query(int64_t row) const { return q0_ + row / s_.group(); }
  int64_t query_head(int64_t row) const { return head_ * s_.group() + row % s_.group(); }
  int32_t segment(int64_t row) const { return s_.segments_q[b_ * s_.queries + query(row)]; }

  // Whether rows [r, end) may share a segment with a key of the current block.
  bool meets_segments(int64_t r, int64_t end) const {
    if (!s_.segments_q) return true;
    for (; r < end; r += 1) {
      const int32_t own = segment(r);
      if (own != 0 && own >= lowest_segment_ && own <= highest_segment_) return true;
    }
    return false;
  }

  void load_segments(int64_t j, int64_t count) {
    lowest_segment_ = std::numeric_limits<int32_t>::max();
    highest_segment_ = std::numeric_limits<int32_t>::min();
    std::fill(segments_, segments_ + kKeyBlock, 0);
    for (int64_t i = 0; i < count; ++i) {
      const int32_t segment = segments_[i] = s_.segments_k[b_ * s_.keys + j + i];
      if (segment == 0) continue;
      lowest_segment_ = std::min(lowest_segment_, segment);
      highest_segment_ = std::max(highest_segment_, segment);
    }
  }

  void key_block(int64_t j, int64_t count) {
    if (s_.segments_q) {
      load_segments(j, count);
      if (!meets_segments(0, rows_)) return;
    }
    // Only what some query of this run sees is widened.
    count = std::min(count, s_.last_key(q1_ - 1) - j);
    to_panels_transposed(k_, s_.depth * width, f_.k.at(b_, j, head_), f_.k.step_stride, s_.depth, count);
    to_panels(v_, kKeyBlock * width, f_.v.at(b_, j, head_), f_.v.step_stride, count, s_.value_depth);
    for (int64_t r = 0; r < rows_; r += kRows) {
      const int64_t end = std::min(r + kRows, rows_);
      const int64_t lo = std::max(s_.first_key(query(r)) - j, int64_t{0});
      const int64_t hi = std::min(s_.last_key(query(end - 1)) - j, count);
      if (lo < hi && meets_segments(r, end)) row_block(r, end - r, j, lo / width, hi);
    }
  }

  void row_block(int64_t r, int64_t rows, int64_t j, int64_t first_panel, int64_t hi) {
    const int64_t last_panel = panels<Acc>(hi);
    for (int64_t p = first_panel; p < last_panel; ++p) {
      multiply_rows<Acc, kRows>(rows, q_ + r * width, rows_ * width, k_ + p * s_.depth * width,
                                scores_ + p * kRows * width, s_.depth, false);
    }
    for (int64_t i = 0; i < rows; ++i) {
      if (s_.softcap > 0) {
        soften<true>(r + i, scores_ + i * width, j, first_panel, last_panel);
      } else {
        soften<false>(r + i, scores_ + i * width, j, first_panel, last_panel);
      }
    }
    const int64_t from = first_panel * width;
    for (int64_t p = 0; p < panels<Acc>(s_.value_depth); ++p) {
      multiply_rows<Acc, kRows>(rows, scores_ + first_panel * kRows * width, kRows * width,
                                v_ + p * kKeyBlock * width + from * width, out_ + (p * rows_ + r) * width, hi - from,
                                true);
    }
  }

  // Scores of one row to exp(score - max), zero where it does not see; rescales what the row has gathered so far.
  template <bool Capped>
  void soften(int64_t row, Acc* scores, int64_t j, int64_t first_panel, int64_t last_panel) {
    const Acc infinity = std::numeric_limits<Acc>::infinity();
    const int64_t lo = s_.first_key(query(row)) - j, hi = s_.last_key(query(row)) - j;
    const auto own = splat_int<Acc>(s_.segments_q ? segment(row) : 0);
    const auto scale = splat(static_cast<Acc>(Capped ? s_.scale / s_.softcap : s_.scale));
    const Acc cap = static_cast<Acc>(s_.softcap);
    auto highest = splat(-infinity);
    for (int64_t p = first_panel; p < last_panel; ++p) {
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t key = p * width + half * lanes;
        Acc* at = scores + p * kRows * width + half * lanes;
        Vec<Acc> x = load(at) * scale;
        if constexpr (Capped) x = cap * tanh_of(x);
        if (key < lo || key + lanes > hi) {
          const auto index = count_from<Acc>(key);
          x = ((index >= splat_int<Acc>(lo)) & (index < splat_int<Acc>(hi))) ? x : splat(-infinity);
        }
        if (s_.segments_q) {
          const auto theirs = load_ints<Acc>(segments_ + key);
          x = ((theirs == own) & (theirs != 0)) ? x : splat(-infinity);
        }
        store(at, x);
        highest = x > highest ? x : highest;
      }
    }
    const Acc before = max_[row], now = std::max(before, largest<Acc>(highest));
    const Acc base = now == -infinity ? Acc{0} : now;
    Vec<Acc> sum{};
    for (int64_t p = first_panel; p < last_panel; ++p) {
      for (int64_t half = 0; half < 2; ++half) {
        Acc* at = scores + p * kRows * width + half * lanes;
        const Vec<Acc> e = exp_of_nonpositive(load(at) - base);
        store(at, e);
        sum += e;
      }
    }
    const Acc shrink = now == before ? Acc{1} : exp_of_nonpositive(splat(before - base))[0];
    sum_[row] = fused(splat(sum_[row]), splat(shrink), splat(total<Acc>(sum)))[0];
    max_[row] = now;
    if (now == before) return;
    for (int64_t p = 0; p < panels<Acc>(s_.value_depth); ++p) {
      Acc* out = out_ + (p * rows_ + row) * width;
      store(out, load(out) * shrink);
      store(out + lanes, load(out + lanes) * shrink);
    }
  }

  void finish(int64_t row) {
    const Acc sum = sum_[row];
    const bool empty = max_[row] == -std::numeric_limits<Acc>::infinity();
    T* to = f_.out.at(b_, query(row), query_head(row));
    for (int64_t d = 0; d < s_.value_depth; d += lanes) {
      const Acc* from = out_ + ((d / width) * rows_ + row) * width + d % width;
      store_narrow_some(to + d, empty ? Vec<Acc>{} : load(from) / sum, s_.value_depth - d);
    }
    f_.lse[(b_ * s_.query_heads + query_head(row)) * s_.queries + query(row)] = max_[row] + log_of(sum);
  }

  const AttentionForward<T>& f_;
  const AttentionShape& s_;
  const int64_t b_, head_, q0_, q1_, rows_;
  Acc *q_, *out_, *k_, *v_, *scores_, *max_, *sum_;
  int32_t segments_[kKeyBlock];
  int32_t lowest_segment_ = 0, highest_segment_ = 0;
};

}  // namespace limbeck::kernels::LIMBECK_ISA
