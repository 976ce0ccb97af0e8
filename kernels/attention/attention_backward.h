// Gradients of attention for one (batch, key head), from q, k, v, out and the saved log-sum-exp.
//
// Tiles hold keys as rows and queries as columns: the statistics of a query are then vectors beside the tile, and the
// tile is both the left operand of dK, dV and the right operand of dQ^T without being moved. Each sum runs in one
// order, inside one thread. Scratch a thread, kept: about 4 (3 D + 2 Dv) S bytes in float32, and fixed tiles.
#pragma once
#include <algorithm>
#include <limits>

#include "kernels/attention/attention_lanes.h"
#include "kernels/attention/attention_loops.h"
#include "kernels/cpu/elementary.h"
#include "kernels/cpu/panels.h"

namespace limbeck::kernels::LIMBECK_ISA {

constexpr int64_t kBackwardKeys = 128;
constexpr int64_t kBackwardQueries = 128;

template <class T>
class BackwardRun {
  using Acc = Compute<T>;
  static constexpr int64_t width = kWidth<Acc>, lanes = kLanes<Acc>;

 public:
  BackwardRun(const AttentionBackward<T>& f, int64_t b, int64_t head)
      : f_(f),
        s_(f.shape),
        b_(b),
        head_(head),
        depth_cols_(panels<Acc>(s_.depth) * width),
        value_cols_(panels<Acc>(s_.value_depth) * width),
        blocks_((s_.keys + kBackwardKeys - 1) / kBackwardKeys) {
    const int64_t padded = blocks_ * kBackwardKeys, tile = kBackwardQueries * std::max(kBackwardKeys, depth_cols_);
    const int64_t sizes[] = {padded * depth_cols_,
                             padded * depth_cols_,
                             padded * value_cols_,
                             padded * depth_cols_,
                             padded * value_cols_,
                             tile,
                             tile,
                             kBackwardQueries * depth_cols_,
                             kBackwardQueries * depth_cols_,
                             kBackwardQueries * value_cols_,
                             kBackwardQueries * value_cols_,
                             kBackwardQueries * depth_cols_};
    Acc** const parts[] = {&k_, &k_t_, &v_, &dk_, &dv_, &p_, &ds_, &q_, &q_t_, &dout_, &dout_t_, &dq_t_};
    int64_t floats = 0;
    for (const int64_t size : sizes) floats += (size + 15) / 16 * 16;
    Acc* next = static_cast<Acc*>(f.scratch(static_cast<size_t>(floats) * sizeof(Acc)));
    for (int i = 0; i < 12; ++i) {
      *parts[i] = next;
      next += (sizes[i] + 15) / 16 * 16;
    }
  }

  void run() {
    for (int64_t n = 0; n < blocks_; ++n) {
      const int64_t j = n * kBackwardKeys, count = std::min(kBackwardKeys, s_.keys - j);
      const int64_t step = f_.k.step_stride;
      to_panels(k_of(k_, n), kBackwardKeys * width, f_.k.at(b_, j, head_), step, count, s_.depth);
      to_panels_transposed(k_of(k_t_, n), s_.depth * width, f_.k.at(b_, j, head_), step, s_.depth, count);
      to_panels(v_of(v_, n), kBackwardKeys * width, f_.v.at(b_, j, head_), f_.v.step_stride, count, s_.value_depth);
    }
    std::fill(dk_, dk_ + blocks_ * kBackwardKeys * depth_cols_, Acc{0});
    std::fill(dv_, dv_ + blocks_ * kBackwardKeys * value_cols_, Acc{0});
    for (int64_t g = 0; g < s_.group(); ++g) {
      for (int64_t i = 0; i < s_.queries; i += kBackwardQueries) query_block(head_ * s_.group() + g, i);
    }
    for (int64_t n = 0; n < blocks_; ++n) {
      const int64_t j = n * kBackwardKeys, count = std::min(kBackwardKeys, s_.keys - j);
      write_rows(f_.dk.at(b_, j, head_), f_.dk.step_stride, k_of(dk_, n), kBackwardKeys * width, count, s_.depth);
      write_rows(f_.dv.at(b_, j, head_), f_.dv.step_stride, v_of(dv_, n), kBackwardKeys * width, count, s_.value_depth);
    }
  }

 private:
  Acc* k_of(Acc* base, int64_t block) const { return base + block * kBackwardKeys * depth_cols_; }
  Acc* v_of(Acc* base, int64_t block) const { return base + block * kBackwardKeys * value_cols_; }

  static void write_rows(T* to, int64_t row_stride, const Acc* panel, int64_t panel_stride, int64_t rows,
                         int64_t cols) {
    for (int64_t c = 0; c < cols; c += lanes) {
      const Acc* from = panel + (c / width) * panel_stride + c % width;
      for (int64_t r = 0; r < rows; ++r) {
        store_narrow_some(to + r * row_stride + c, load(from + r * width), cols - c);
      }
    }
  }

  // Range of keys and segment of each query of the block; queries past the end see nothing.
  void load_queries(int64_t head, int64_t i0, int64_t count) {
    for (int64_t i = 0; i < kBackwardQueries; ++i) {
      const bool real = i < count;
      const int64_t query = i0 + i;
      first_[i] = static_cast<int32_t>(real ? s_.first_key(query) : 0);
      last_[i] = static_cast<int32_t>(real ? s_.last_key(query) : 0);
      segment_[i] = real && s_.segments_q ? s_.segments_q[b_ * s_.queries + query] : 0;
      const Acc lse = real ? f_.lse[(b_ * s_.query_heads + head) * s_.queries + query] : Acc{0};
      const bool empty = !real || lse == -std::numeric_limits<Acc>::infinity();
      lse_[i] = empty ? std::numeric_limits<Acc>::infinity() : lse;  // exp(score - inf) is the zero we want
      delta_[i] = real ? dot(f_.out.at(b_, query, head), f_.dout.at(b_, query, head)) : Acc{0};
    }
  }

  Acc dot(const T* x, const T* y) const {
    Vec<Acc> sum{};
    for (int64_t d = 0; d < s_.value_depth; d += lanes) {
      sum = fused(load_wide_some(x + d, s_.value_depth - d), load_wide_some(y + d, s_.value_depth - d), sum);
    }
    return total<Acc>(sum);
  }

  void query_block(int64_t head, int64_t i0) {
    const int64_t count = std::min(kBackwardQueries, s_.queries - i0);
    load_queries(head, i0, count);
    const T* q = f_.q.at(b_, i0, head);
    const T* dout = f_.dout.at(b_, i0, head);
    to_panels(q_, kBackwardQueries * width, q, f_.q.step_stride, count, s_.depth);
    to_panels_transposed(q_t_, s_.depth * width, q, f_.q.step_stride, s_.depth, count);
    to_panels(dout_, kBackwardQueries * width, dout, f_.dout.step_stride, count, s_.value_depth);
    to_panels_transposed(dout_t_, s_.value_depth * width, dout, f_.dout.step_stride, s_.value_depth, count);
    std::fill(dq_t_, dq_t_ + kBackwardQueries * depth_cols_, Acc{0});
    const int64_t first = s_.first_key(i0) / kBackwardKeys;
    for (int64_t n = first; n < blocks_ && n * kBackwardKeys < s_.last_key(i0 + count - 1); ++n) {
      if (meets_segments(count, n)) tile(n, count);
    }
    // dQ^T -> rows, through the tile that is no longer needed.
    for (int64_t p = 0; p < panels<Acc>(count); ++p) {
      const int64_t rows = std::min(width, count - p * width);
      to_panels_transposed(p_, width * width, dq_t_ + p * s_.depth * width, width, rows, s_.depth);
      write_rows(f_.dq.at(b_, i0 + p * width, head), f_.dq.step_stride, p_, width * width, rows, s_.depth);
    }
  }

  bool meets_segments(int64_t count, int64_t n) const {
    if (!s_.segments_q) return true;
    const int32_t* theirs = s_.segments_k + b_ * s_.keys;
    const int64_t end = std::min((n + 1) * kBackwardKeys, s_.keys);
    int32_t lowest = std::numeric_limits<int32_t>::max(), highest = std::numeric_limits<int32_t>::min();
    for (int64_t j = n * kBackwardKeys; j < end; ++j) {
      if (theirs[j] == 0) continue;
      lowest = std::min(lowest, theirs[j]);
      highest = std::max(highest, theirs[j]);
    }
    for (int64_t i = 0; i < count; ++i) {
      if (segment_[i] != 0 && segment_[i] >= lowest && segment_[i] <= highest) return true;
    }
    return false;
  }

  // Panels of queries that see some key of [j, end): queries see a band, so they are neighbours.
  struct Range {
    int64_t begin, end;
  };
  Range query_panels(int64_t j, int64_t end, int64_t count) const {
    Range r{panels<Acc>(count), 0};
    for (int64_t p = 0; p < panels<Acc>(count); ++p) {
      const int64_t last = std::min((p + 1) * width, count) - 1;
      if (first_[p * width] < end && last_[last] > j) {
        r.begin = std::min(r.begin, p);
        r.end = p + 1;
      }
    }
    return r;
  }

  void tile(int64_t n, int64_t count) {
    const int64_t j0 = n * kBackwardKeys, keys = std::min(kBackwardKeys, s_.keys - j0);
    constexpr int64_t panel = kBackwardKeys * width;
    for (int64_t r = 0; r < keys; r += kRows) {
      const int64_t rows = std::min(kRows, keys - r);
      const Range seen = query_panels(j0 + r, j0 + r + rows, count);
      if (seen.begin >= seen.end) continue;
      for (int64_t p = seen.begin; p < seen.end; ++p) {
        multiply_rows<Acc, kRows>(rows, k_of(k_, n) + r * width, panel, q_t_ + p * s_.depth * width,
                                  p_ + p * panel + r * width, s_.depth, false);
        multiply_rows<Acc, kRows>(rows, v_of(v_, n) + r * width, panel, dout_t_ + p * s_.value_depth * width,
                                  ds_ + p * panel + r * width, s_.value_depth, false);
        for (int64_t i = r; i < r + rows; ++i) {
          if (s_.softcap > 0) {
            gradients<true>(j0 + i, p * width, p_ + p * panel + i * width, ds_ + p * panel + i * width);
          } else {
            gradients<false>(j0 + i, p * width, p_ + p * panel + i * width, ds_ + p * panel + i * width);
          }
        }
      }
      const int64_t from = seen.begin * width, steps = std::min(seen.end * width, count) - from;
      for (int64_t p = 0; p < depth_cols_ / width; ++p) {
        multiply_rows<Acc, kRows>(rows, ds_ + seen.begin * panel + r * width, panel,
                                  q_ + p * kBackwardQueries * width + from * width,
                                  k_of(dk_, n) + p * panel + r * width, steps, true);
      }
      for (int64_t p = 0; p < value_cols_ / width; ++p) {
        multiply_rows<Acc, kRows>(rows, p_ + seen.begin * panel + r * width, panel,
                                  dout_ + p * kBackwardQueries * width + from * width,
                                  v_of(dv_, n) + p * panel + r * width, steps, true);
      }
    }
    add_to_dq(n, j0, keys, count);
  }

  // dQ^T [depth, queries] += K^T dS^T, over the keys that some query of the panel sees.
  void add_to_dq(int64_t n, int64_t j0, int64_t keys, int64_t count) {
    for (int64_t p = 0; p < panels<Acc>(count); ++p) {
      const int64_t last = std::min((p + 1) * width, count) - 1;
      const int64_t from = std::max<int64_t>(first_[p * width] - j0, 0) / width * width;
      const int64_t to = std::min<int64_t>(last_[last] - j0, keys);
      if (from >= to) continue;
      const int64_t start = std::max(from, first_computed_row(p, j0, keys));
      // The left operand begins at a panel, the rows before `start` were not computed: they are zeros.
      for (int64_t r = from; r < start; ++r) {
        std::fill_n(ds_ + p * kBackwardKeys * width + r * width, width, Acc{0});
      }
      multiply(k_of(k_t_, n) + (from / width) * s_.depth * width, s_.depth * width,
               ds_ + p * kBackwardKeys * width + from * width, 0, dq_t_ + p * s_.depth * width, 0, s_.depth, width,
               to - from, true);
    }
  }

  // First row of the tile that tile() has computed for this panel: it works in steps of kRows.
  int64_t first_computed_row(int64_t p, int64_t j0, int64_t keys) const {
    const int64_t first = std::max<int64_t>(first_[p * width] - j0, 0);
    return std::min(first / kRows * kRows, keys);
  }

  // One key against `width` queries: scores in `p` become probabilities, dP in `ds` becomes dS.
  template <bool Capped>
  void gradients(int64_t key, int64_t i, Acc* p, Acc* ds) const {
    const auto scale = splat(static_cast<Acc>(s_.scale));
    const Acc cap = static_cast<Acc>(s_.softcap);
    for (int64_t half = 0; half < 2; ++half, i += lanes, p += lanes, ds += lanes) {
      const Vec<Acc> score = load(p) * scale;
      Vec<Acc> over = score - load(lse_ + i), slope = scale;  // the logarithm of the probability
      if constexpr (Capped) {
        const Vec<Acc> t = tanh_of(score / cap);
        // Of float64 the capped score is rounded first: the bits that gradients have always had.
        over = sizeof(Acc) == 4 ? fused(t, splat(cap), -load(lse_ + i)) : t * cap - load(lse_ + i);
        slope = scale * fused(-t, t, splat(Acc{1}));
      }
      const auto index = splat_int<Acc>(key);
      auto sees = (load_ints<Acc>(first_ + i) <= index) & (index < load_ints<Acc>(last_ + i));
      if (s_.segments_q) {
        const int32_t theirs = s_.segments_k[b_ * s_.keys + key];
        sees = sees & (load_ints<Acc>(segment_ + i) == splat_int<Acc>(theirs)) & (splat_int<Acc>(theirs) != 0);
      }
      const Vec<Acc> probability = sees ? exp_of_nonpositive(over) : Vec<Acc>{};
      store(p, probability);
      store(ds, sees ? probability * (load(ds) - load(delta_ + i)) * slope : Vec<Acc>{});
    }
  }

  const AttentionBackward<T>& f_;
  const AttentionShape& s_;
  const int64_t b_, head_, depth_cols_, value_cols_, blocks_;
  Acc *k_, *k_t_, *v_, *dk_, *dv_, *p_, *ds_, *q_, *q_t_, *dout_, *dout_t_, *dq_t_;
  int32_t first_[kBackwardQueries], last_[kBackwardQueries], segment_[kBackwardQueries];
  Acc lse_[kBackwardQueries], delta_[kBackwardQueries];
};

}  // namespace limbeck::kernels::LIMBECK_ISA
