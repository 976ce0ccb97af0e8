#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels/cpu/vector_targets.h"
#include "kernels/head_loss/head_loss_cpu.h"
#include "kernels/head_loss/head_loss_passes.h"
#include "kernels/head_loss/head_loss_plan.h"
#include "kernels/operator/checks.h"

#ifndef _OPENMP
#error "compile kernels/ with -fopenmp: at::parallel_for is header code and runs on one thread without it"
#endif

#define LIMBECK_VECTOR_BODY "kernels/head_loss/head_loss.inc"
#include "kernels/cpu/vector_bodies.inc"

namespace limbeck::kernels {
namespace {

using at::Tensor;

void product(bool pairs, const TileProduct& p) {
  if (pairs) return bf16_tile_product(p);
  LIMBECK_ON_VECTOR_TARGET(float_tile_product(p));
}

// The whole computation on the CPU. Every number is computed by one task from a fixed set of others in a fixed order,
// so that its bits do not depend on the number of threads; values do not depend on what gradients are asked for either.
class HeadLossRun {
 public:
  HeadLossRun(const HeadLossInputs& in, const HeadLossOptions& options, const Tensor& counted, bool hidden_gradient,
              bool weight_gradient);
  HeadLossResults results();

 private:
  template <class Work>
  void each(int64_t count, const Work& work) const;  // work(task, worker)
  template <class T = float>
  T* at(int64_t offset) const {
    return reinterpret_cast<T*>(scratch_.mutable_data_ptr<uint8_t>() + offset);
  }
  char* student_left(int64_t worker) const { return at<char>(plan_.workers + worker * plan_.worker_bytes); }
  char* teacher_left(int64_t worker) const { return student_left(worker) + plan_.left_student_bytes; }
  float* spare_logits(int64_t worker) const {
    return at(plan_.workers + (worker + 1) * plan_.worker_bytes - 2 * kHeadArea * 4);
  }
  float* constants(int64_t block) const { return at(plan_.constants) + block * kRowConstants * kHeadBlock; }
  HeadRunning& running(int64_t block) const { return at<HeadRunning>(plan_.running)[block]; }
  int64_t columns_of(int64_t tile) const { return std::min(kHeadTile, formula_.vocabulary - tile * kHeadTile); }
  // Where the chunk of a tile (counted from the first one held) and a block of the current run lies.
  char* chunk(int64_t tile, int64_t block) const {
    return at<char>(plan_.chunks) + (tile * plan_.run + block) * plan_.chunk_bytes;
  }
  int64_t rows_in(int64_t block) const { return std::min(kHeadBlock, counted_ - block * kHeadBlock); }
  bool two_steps() const { return needs_mean_slope(formula_.divergence); }
  bool gradients() const { return shape_.hidden_gradient || shape_.weight_gradient; }

  void pack_hidden();
  void pack_weights(int64_t tile, int64_t worker) const;
  void make_logits(int64_t block, int64_t worker, float* student, float* teacher) const;
  void statistics(int64_t first_block, int64_t blocks);
  void finish_statistics(int64_t block);
  HeadChunk chunk_of(int64_t tile, int64_t block, const float* student, const float* teacher) const;
  void values(int64_t first_block, int64_t blocks);
  void merge_values(int64_t first_block, int64_t blocks, int64_t tiles);
  void finish_values(int64_t block);
  void gradients(int64_t first_block, int64_t blocks);
  void group_terms(int64_t first_tile, int64_t tiles, int64_t first_block, int64_t blocks);
  void sum_weight(int64_t slot, int64_t tile, int64_t first_block, int64_t blocks, bool first, bool last);
  void sum_hidden(int64_t first_slot, int64_t tiles, int64_t first_block, int64_t blocks, bool first);
  void store_hidden();
  void run_blocks(int64_t first_block, int64_t blocks);

  const HeadLossInputs& in_;
  const HeadLossOptions& options_;
  HeadFormula formula_;
  HeadShape shape_;
  HeadPlan plan_;
  int64_t counted_;
  const int64_t* index_;
  Tensor student_hidden_, student_weight_, teacher_hidden_, teacher_weight_, labels_, divergence_weight_, ce_weight_;
  HeadOperand student_rows_, teacher_rows_;  // hidden states
  Tensor scratch_;
  Tensor divergence_, cross_entropy_, hidden_gradient_, weight_gradient_;
};

Tensor adjacent(const Tensor& t) { return t.stride(1) == 1 || t.size(1) == 1 ? t : t.contiguous(); }

HeadOperand operand_of(const Tensor& t, bool pairs) {
  return {.data = t.const_data_ptr(),
          .row_stride = t.size(0) == 1 ? t.size(1) : t.stride(0),
          .depth = t.size(1),
          .storage = storage_of(t),
          .pairs = pairs};
}

HeadFormula formula_of(const HeadLossInputs& in, const HeadLossOptions& o) {
  const bool squared = o.divergence == Divergence::kLogitMse;
  const bool softmax = o.divergence != Divergence::kNone && !squared;
  return {.divergence = o.divergence,
          .has_ce = in.labels.has_value(),
          .ce_shares = in.labels.has_value() && softmax && o.temperature == 1.0 && o.clamp == 0.0,
          .has_softmax = softmax,
          .mix = static_cast<float>(o.mix),
          .inverse_temperature = squared ? 1.0f : static_cast<float>(1.0 / o.temperature),
          .clamp = static_cast<float>(o.clamp),
          .smoothing = static_cast<float>(o.label_smoothing),
          .student_scale = static_cast<float>(o.student_scale),
          .teacher_scale = static_cast<float>(o.teacher_scale),
          .student_cap = static_cast<float>(o.student_softcap),
          .teacher_cap = static_cast<float>(o.teacher_softcap),
          .vocabulary = o.vocabulary};
}

HeadLossRun::HeadLossRun(const HeadLossInputs& in, const HeadLossOptions& options, const Tensor& counted,
                         bool hidden_gradient, bool weight_gradient)
    : in_(in),
      options_(options),
      formula_(formula_of(in, options)),
      shape_(head_shape(in, options, std::max<int64_t>(counted.numel(), 1), hidden_gradient, weight_gradient)),
      plan_(head_plan(shape_)),
      counted_(counted.numel()),
      index_(counted.const_data_ptr<int64_t>()),
      student_hidden_(adjacent(in.student_hidden)),
      student_weight_(adjacent(in.student_weight)),
      divergence_weight_(in.divergence_weight.contiguous()),
      ce_weight_(in.ce_weight.contiguous()) {
  student_rows_ = operand_of(student_hidden_, shape_.student.pairs);
  shape_.student = operand_of(student_weight_, shape_.student.pairs);
  if (formula_.has_divergence()) {
    teacher_hidden_ = adjacent(*in.teacher_hidden);
    teacher_weight_ = adjacent(*in.teacher_weight);
    teacher_rows_ = operand_of(teacher_hidden_, shape_.teacher.pairs);
    shape_.teacher = operand_of(teacher_weight_, shape_.teacher.pairs);
  }
  if (in.labels) labels_ = in.labels->contiguous();
  const auto wide = in.divergence_weight.options();
  divergence_ = at::zeros({in.student_hidden.size(0)}, wide);
  cross_entropy_ = at::zeros({in.student_hidden.size(0)}, wide);
  hidden_gradient_ = at::empty({hidden_gradient ? in.student_hidden.size(0) : 0, in.student_hidden.size(1)},
                               in.student_hidden.options());
  weight_gradient_ = at::empty({weight_gradient ? in.student_weight.size(0) : 0, in.student_weight.size(1)},
                               in.student_weight.options());
  scratch_ = at::empty({plan_.bytes}, in.student_hidden.options().dtype(at::kByte));
}

// Tasks of unequal cost: each thread takes the next one when it is free. The results do not depend on who does what.
template <class Work>
void HeadLossRun::each(int64_t count, const Work& work) const {
  std::atomic<int64_t> next{0};
  const int64_t threads = at::in_parallel_region() ? 1 : std::min(shape_.threads, count);
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t i; (i = next.fetch_add(1)) < count;) work(i, worker);
    }
  });
}

void HeadLossRun::pack_hidden() {
  const int64_t element = student_rows_.element(), depth = student_rows_.blocks();
  each(plan_.blocks, [&](int64_t b, int64_t) {
    const int64_t count = rows_in(b), *index = index_ + b * kHeadBlock;
    char* columns = at<char>(plan_.student_columns) + b * depth * kProductArea * element;
    LIMBECK_ON_VECTOR_TARGET(pack_right_transposed(student_rows_, index, count, columns));
    if (formula_.has_divergence()) {
      columns = at<char>(plan_.teacher_columns) + b * teacher_rows_.blocks() * kProductArea * teacher_rows_.element();
      LIMBECK_ON_VECTOR_TARGET(pack_right_transposed(teacher_rows_, index, count, columns));
    }
    if (shape_.weight_gradient) {
      char* rows = at<char>(plan_.student_rows) + b * kProductArea * element;
      LIMBECK_ON_VECTOR_TARGET(pack_right(student_rows_, index, 0, count, rows, plan_.blocks * kProductArea));
    }
    auto* labels = at<int32_t>(plan_.labels) + b * kHeadBlock;
    for (int64_t i = 0; i < kHeadBlock; ++i) {
      const int64_t label = i < count && labels_.defined() ? labels_.const_data_ptr<int64_t>()[index[i]] : -1;
      labels[i] = label < 0 ? -1 : static_cast<int32_t>(label);
    }
    auto& all = running(b);
    std::memset(&all, 0, sizeof all);
    for (auto& which : all.max) std::fill(which, which + kHeadBlock, -std::numeric_limits<float>::infinity());
  });
}

void HeadLossRun::pack_weights(int64_t tile, int64_t worker) const {
  const int64_t first = tile * kHeadTile, count = columns_of(tile);
  LIMBECK_ON_VECTOR_TARGET(pack_left(shape_.student, first, count, student_left(worker)));
  if (!formula_.has_divergence()) return;
  LIMBECK_ON_VECTOR_TARGET(pack_left(shape_.teacher, first, count, teacher_left(worker)));
}

void HeadLossRun::make_logits(int64_t block, int64_t worker, float* student, float* teacher) const {
  const auto multiply = [&](const HeadOperand& op, const char* left, int64_t columns, float* to) {
    product(op.pairs, {.c = to,
                       .a = left,
                       .a_block_stride = kHeadArea,
                       .a_segment_stride = 0,
                       .b = at<char>(columns) + block * op.blocks() * kProductArea * op.element(),
                       .b_segment_stride = 0,
                       .rows = kHeadTile,
                       .blocks = op.blocks(),
                       .segments = 1,
                       .accumulate = false,
                       .sum_blocks_apart = true});
  };
  multiply(shape_.student, student_left(worker), plan_.student_columns, student);
  if (formula_.has_divergence()) multiply(shape_.teacher, teacher_left(worker), plan_.teacher_columns, teacher);
}

// ---- first pass: log-sum-exps --------------------------------------------------------------------------------------

void HeadLossRun::statistics(int64_t first_block, int64_t blocks) {
  const bool wanted = formula_.has_softmax || formula_.has_ce || plan_.kept;  // kept: this pass makes the logits
  constexpr int64_t size = kHeadStatistics * kHeadBlock;
  float* partial = at(plan_.statistics);
  for (int64_t first = 0; wanted && first < plan_.tiles; first += plan_.statistics_tiles) {
    const int64_t tiles = std::min(plan_.statistics_tiles, plan_.tiles - first);
    each(tiles, [&](int64_t t, int64_t worker) {
      pack_weights(first + t, worker);
      for (int64_t b = 0; b < blocks; ++b) {
        float* student = plan_.kept ? reinterpret_cast<float*>(chunk(first + t, b)) : spare_logits(worker);
        make_logits(first_block + b, worker, student, student + kHeadArea);
        const auto* labels = at<int32_t>(plan_.labels) + (first_block + b) * kHeadBlock;
        LIMBECK_ON_VECTOR_TARGET(tile_statistics(formula_, student, student + kHeadArea, labels,
                                                 (first + t) * kHeadTile, columns_of(first + t),
                                                 partial + (t * blocks + b) * size));
      }
    });
    each(blocks, [&](int64_t b, int64_t) {
      for (int64_t t = 0; t < tiles; ++t) {
        LIMBECK_ON_VECTOR_TARGET(merge_statistics(partial + (t * blocks + b) * size, running(first_block + b)));
      }
    });
  }
  for (int64_t b = 0; b < blocks; ++b) finish_statistics(first_block + b);
}

void HeadLossRun::finish_statistics(int64_t block) {
  const auto& all = running(block);
  float* row = constants(block);
  std::memset(row, 0, kRowConstants * kHeadBlock * sizeof(float));
  const double divergence_factor = options_.gradient_scale * (formula_.divergence == Divergence::kLogitMse
                                                                  ? 2.0 / static_cast<double>(formula_.vocabulary)
                                                                  : options_.temperature * options_.temperature);
  for (int64_t i = 0; i < rows_in(block); ++i) {
    const auto put = [&](RowConstant what, double x) { row[what * kHeadBlock + i] = static_cast<float>(x); };
    const int64_t token = index_[block * kHeadBlock + i];
    const auto max = [&](int64_t which) { return static_cast<double>(all.max[which][i]); };
    const auto weight_of = [&](const Tensor& t) { return static_cast<double>(t.const_data_ptr<float>()[token]); };
    if (formula_.has_softmax) {
      put(kRowStudentMax, max(0));
      put(kRowStudentInverse, 1.0 / all.sum[0][i]);
      put(kRowTeacherMax, max(1));
      put(kRowTeacherInverse, 1.0 / all.sum[1][i]);
      put(kRowShift, (max(0) - max(1)) + (std::log(all.sum[0][i]) - std::log(all.sum[1][i])));
    }
    if (formula_.has_divergence()) put(kRowDivergenceWeight, weight_of(divergence_weight_) * divergence_factor);
    if (!formula_.has_ce || labels_.const_data_ptr<int64_t>()[token] < 0) continue;
    const int64_t which = formula_.ce_shares ? 0 : 2;
    put(kRowPlainMax, max(which));
    put(kRowPlainInverse, 1.0 / all.sum[which][i]);
    put(kRowCeWeight, weight_of(ce_weight_) * options_.gradient_scale);
    if (weight_of(ce_weight_) == 0.0) continue;
    const double smoothing = options_.label_smoothing;
    const double value = max(which) + std::log(all.sum[which][i]) - (1.0 - smoothing) * all.label_logit[i] -
                         smoothing * all.plain_total[i] / static_cast<double>(formula_.vocabulary);
    cross_entropy_.mutable_data_ptr<float>()[token] = static_cast<float>(value);
  }
}

// ---- values --------------------------------------------------------------------------------------------------------

HeadChunk HeadLossRun::chunk_of(int64_t tile, int64_t block, const float* student, const float* teacher) const {
  return {.student = student,
          .teacher = teacher,
          .constants = constants(block),
          .labels = at<int32_t>(plan_.labels) + block * kHeadBlock,
          .first_column = tile * kHeadTile,
          .values = nullptr,
          .by_column = nullptr,
          .by_token = nullptr,
          .pairs = shape_.student.pairs};
}

void HeadLossRun::values(int64_t first_block, int64_t blocks) {
  for (int64_t first = 0; first < plan_.tiles; first += plan_.statistics_tiles) {
    const int64_t tiles = std::min(plan_.statistics_tiles, plan_.tiles - first);
    each(tiles, [&](int64_t t, int64_t worker) {
      if (!plan_.kept) pack_weights(first + t, worker);
      for (int64_t b = 0; b < blocks; ++b) {
        float* student = plan_.kept ? reinterpret_cast<float*>(chunk(first + t, b)) : spare_logits(worker);
        if (!plan_.kept) make_logits(first_block + b, worker, student, student + kHeadArea);
        auto c = chunk_of(first + t, first_block + b, student, student + kHeadArea);
        c.values = at(plan_.values) + (t * blocks + b) * 2 * kHeadBlock;
        LIMBECK_ON_VECTOR_TARGET(tile_pass(formula_, c));
      }
    });
    merge_values(first_block, blocks, tiles);
  }
}

void HeadLossRun::merge_values(int64_t first_block, int64_t blocks, int64_t tiles) {
  for (int64_t t = 0; t < tiles; ++t) {
    for (int64_t b = 0; b < blocks; ++b) {
      const float* from = at(plan_.values) + (t * blocks + b) * 2 * kHeadBlock;
      auto& all = running(first_block + b);
      for (int64_t i = 0; i < kHeadBlock; ++i) {
        all.value[i] += static_cast<double>(from[i]);
        all.mean_slope[i] += static_cast<double>(from[kHeadBlock + i]);
      }
    }
  }
}

void HeadLossRun::finish_values(int64_t block) {
  const double factor = formula_.divergence == Divergence::kLogitMse ? 1.0 / static_cast<double>(formula_.vocabulary)
                                                                     : options_.temperature * options_.temperature;
  for (int64_t i = 0; i < rows_in(block); ++i) {
    const int64_t token = index_[block * kHeadBlock + i];
    if (divergence_weight_.const_data_ptr<float>()[token] == 0.0f) continue;
    divergence_.mutable_data_ptr<float>()[token] = static_cast<float>(running(block).value[i] * factor);
    constants(block)[kRowMeanSlope * kHeadBlock + i] = static_cast<float>(running(block).mean_slope[i]);
  }
}

// ---- gradients -----------------------------------------------------------------------------------------------------

void HeadLossRun::gradients(int64_t first_block, int64_t blocks) {
  for (int64_t first = 0; first < plan_.tiles; first += plan_.group) {
    const int64_t tiles = std::min(plan_.group, plan_.tiles - first);
    for (int64_t b = 0; b < blocks; b += plan_.run) {
      const int64_t some = std::min(plan_.run, blocks - b);
      group_terms(first, tiles, first_block + b, some);
      if (shape_.hidden_gradient) sum_hidden(plan_.kept ? first : 0, tiles, first_block + b, some, first == 0);
      if (!two_steps() && formula_.has_divergence()) merge_values(first_block + b, some, tiles);
    }
  }
}

// dz of a group of tiles for a run of blocks, and the weight's gradient, which belongs to the tile.
void HeadLossRun::group_terms(int64_t first_tile, int64_t tiles, int64_t first_block, int64_t blocks) {
  each(tiles, [&](int64_t t, int64_t worker) {
    const int64_t tile = first_tile + t, slot = plan_.kept ? tile : t;
    if (!plan_.kept) pack_weights(tile, worker);
    for (int64_t b = 0; b < blocks; ++b) {
      char* held = chunk(slot, b);
      float* student = plan_.kept ? reinterpret_cast<float*>(held) : spare_logits(worker);
      if (!plan_.kept) make_logits(first_block + b, worker, student, student + kHeadArea);
      auto c = chunk_of(tile, first_block + b, student, student + kHeadArea);
      c.values = at(plan_.values) + (t * blocks + b) * 2 * kHeadBlock;
      if (shape_.weight_gradient) c.by_column = held;
      if (shape_.hidden_gradient) c.by_token = held + plan_.chunk_bytes / 2;
      LIMBECK_ON_VECTOR_TARGET(tile_pass(formula_, c));
    }
    if (shape_.hidden_gradient) {
      const int64_t element = shape_.student.element(), depth = shape_.student.blocks();
      char* right = at<char>(plan_.weight_right) + t * depth * kHeadArea * element;
      for (int64_t v = 0; v < kHeadTileBlocks; ++v) {
        const int64_t row = tile * kHeadTile + v * kHeadBlock;
        const int64_t count = std::clamp<int64_t>(formula_.vocabulary - row, 0, kHeadBlock);
        LIMBECK_ON_VECTOR_TARGET(
            pack_right(shape_.student, nullptr, row, count, right + v * kProductArea * element, kHeadArea));
      }
    }
    if (shape_.weight_gradient) {
      sum_weight(slot, tile, first_block, blocks, first_block == 0, first_block + blocks == plan_.blocks);
    }
  });
}

void HeadLossRun::sum_weight(int64_t slot, int64_t tile, int64_t first_block, int64_t blocks, bool first, bool last) {
  const int64_t depth = shape_.student.blocks(), element = shape_.student.element(), width = shape_.student.depth;
  const int64_t bytes = weight_gradient_.element_size(), columns = columns_of(tile);
  auto* rows = static_cast<char*>(weight_gradient_.mutable_data_ptr()) + tile * kHeadTile * width * bytes;
  const bool in_place = shape_.sums_in_place();
  float* sums = in_place ? reinterpret_cast<float*>(rows) : at(plan_.weight_sums) + slot * depth * kHeadArea;
  for (int64_t d = 0; d < depth; ++d) {
    product(shape_.student.pairs,
            {.c = sums + d * (in_place ? kProductBlock : kHeadArea),
             .a = chunk(slot, 0),
             .a_block_stride = 0,
             .a_segment_stride = plan_.chunk_bytes / element,
             .b = at<char>(plan_.student_rows) + (d * plan_.blocks + first_block) * kProductArea * element,
             .b_segment_stride = kProductArea,
             .rows = in_place ? columns : kHeadTile,
             .blocks = 1,
             .segments = blocks,
             .accumulate = !first,
             .c_stride = in_place ? width : kProductBlock});
  }
  if (!last || in_place) return;
  for (int64_t v = 0; v < columns; ++v) {
    LIMBECK_ON_VECTOR_TARGET(
        store_row(sums + v * kHeadBlock, kHeadArea, width, shape_.student.storage, rows + v * width * bytes));
  }
}

void HeadLossRun::sum_hidden(int64_t first_slot, int64_t tiles, int64_t first_block, int64_t blocks, bool first) {
  constexpr int64_t kPanels = 4;  // of 32 columns a task
  const int64_t depth = shape_.student.blocks(), element = shape_.student.element();
  const int64_t parts = (depth + kPanels - 1) / kPanels;
  each(blocks * parts, [&](int64_t task, int64_t) {
    const int64_t b = task / parts, from = task % parts * kPanels;
    for (int64_t d = from; d < std::min(from + kPanels, depth); ++d) {
      product(shape_.student.pairs, {.c = at(plan_.hidden_sums) + ((first_block + b) * depth + d) * kProductArea,
                                     .a = chunk(first_slot, b) + plan_.chunk_bytes / 2,
                                     .a_block_stride = kProductArea,
                                     .a_segment_stride = plan_.run * plan_.chunk_bytes / element,
                                     .b = at<char>(plan_.weight_right) + d * kHeadArea * element,
                                     .b_segment_stride = depth * kHeadArea,
                                     .rows = kHeadBlock,
                                     .blocks = kHeadTileBlocks,
                                     .segments = tiles,
                                     .accumulate = !first});
    }
  });
}

void HeadLossRun::store_hidden() {
  const int64_t width = hidden_gradient_.size(1), bytes = hidden_gradient_.element_size();
  if (counted_ < hidden_gradient_.size(0)) hidden_gradient_.zero_();
  auto* to = static_cast<char*>(hidden_gradient_.mutable_data_ptr());
  each(plan_.blocks, [&](int64_t b, int64_t) {
    const float* sums = at(plan_.hidden_sums) + b * shape_.student.blocks() * kProductArea;
    for (int64_t i = 0; i < rows_in(b); ++i) {
      LIMBECK_ON_VECTOR_TARGET(store_row(sums + i * kHeadBlock, kProductArea, width, student_rows_.storage,
                                         to + index_[b * kHeadBlock + i] * width * bytes));
    }
  });
}

void HeadLossRun::run_blocks(int64_t first_block, int64_t blocks) {
  statistics(first_block, blocks);
  const bool divergence = formula_.has_divergence();
  if (divergence && (two_steps() || !gradients())) values(first_block, blocks);
  const auto finish = [&] {
    for (int64_t b = 0; b < blocks; ++b) finish_values(first_block + b);
  };
  if (divergence && two_steps()) finish();
  if (gradients()) gradients(first_block, blocks);
  if (divergence && !two_steps()) finish();
}

HeadLossResults HeadLossRun::results() {
  if (counted_ == 0) {
    hidden_gradient_.zero_();
    weight_gradient_.zero_();
  } else {
    pack_hidden();
    if (shape_.weight_gradient) {
      const int64_t padding = weight_gradient_.size(0) - formula_.vocabulary;
      weight_gradient_.narrow(0, formula_.vocabulary, padding).zero_();
    }
    const int64_t step = plan_.kept ? plan_.run : plan_.blocks;
    for (int64_t b = 0; b < plan_.blocks; b += step) {
      run_blocks(b, std::min(step, plan_.blocks - b));
    }
    if (shape_.hidden_gradient) store_hidden();
  }
  double loss = 0.0;
  const auto read = [](const Tensor& t, int64_t i) { return static_cast<double>(t.const_data_ptr<float>()[i]); };
  for (int64_t i = 0; i < counted_; ++i) {
    const int64_t token = index_[i];
    loss += read(divergence_weight_, token) * read(divergence_, token) +
            read(ce_weight_, token) * read(cross_entropy_, token);
  }
  auto total = at::empty({}, divergence_.options());
  *total.mutable_data_ptr<float>() = static_cast<float>(loss);
  return {total, divergence_, cross_entropy_, hidden_gradient_, weight_gradient_};
}

}  // namespace

HeadShape head_shape(const HeadLossInputs& in, const HeadLossOptions& options, int64_t tokens, bool hidden_gradient,
                     bool weight_gradient) {
  HeadShape shape;
  shape.tokens = tokens;
  shape.student = head_operand(storage_of(in.student_weight), in.student_weight.size(1));
  if (options.divergence != Divergence::kNone) {
    shape.teacher = head_operand(storage_of(*in.teacher_weight), in.teacher_weight->size(1));
  }
  shape.vocabulary = options.vocabulary;
  shape.two_steps = needs_mean_slope(options.divergence) && (hidden_gradient || weight_gradient);
  shape.hidden_gradient = hidden_gradient;
  shape.weight_gradient = weight_gradient;
  shape.threads = at::get_num_threads();
  return shape;
}

HeadLossResults head_loss_on_cpu(const HeadLossInputs& in, const HeadLossOptions& options, bool hidden_gradient,
                                 bool weight_gradient) {
  const auto counted = counted_tokens(in, options);
  return HeadLossRun(in, options, counted, hidden_gradient, weight_gradient).results();
}

}  // namespace limbeck::kernels
