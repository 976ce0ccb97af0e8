#include "kernels/head_loss/head_loss_cpu.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cstring>
#include <limits>
#include <utility>

#include "kernels/head_loss/head_loss_run.h"
#include "kernels/operator/checks.h"

namespace limbeck::kernels {

using at::Tensor;

namespace {

Tensor adjacent(const Tensor& t) { return t.stride(1) == 1 || t.size(1) == 1 ? t : t.contiguous(); }

HeadOperand operand_of(const Tensor& t, bool pairs) {
  return {.data = t.const_data_ptr(),
          .row_stride = t.size(0) == 1 ? t.size(1) : t.stride(0),
          .depth = t.size(1),
          .storage = storage_of(t),
          .pairs = pairs};
}

}  // namespace

HeadFormula head_formula(const HeadLossInputs& in, const HeadLossOptions& o) {
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
      formula_(head_formula(in, options)),
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

void HeadLossRun::pack_hidden() {
  const int64_t element = student_rows_.element(), depth = student_rows_.blocks();
  each(plan_.blocks, [&](int64_t b, int64_t) {
    const int64_t count = rows_in(b), *index = index_ + b * kHeadBlock;
    char* columns = at<char>(plan_.student_columns) + b * depth * kProductArea * element;
    loops_.pack_right_transposed(student_rows_, index, count, columns);
    if (formula_.has_divergence()) {
      columns = at<char>(plan_.teacher_columns) + b * teacher_rows_.blocks() * kProductArea * teacher_rows_.element();
      loops_.pack_right_transposed(teacher_rows_, index, count, columns);
    }
    if (shape_.weight_gradient) {
      char* rows = at<char>(plan_.student_rows) + b * kProductArea * element;
      loops_.pack_right(student_rows_, index, 0, count, rows, plan_.blocks * kProductArea);
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
  loops_.pack_left(shape_.student, first, count, student_left(worker));
  if (!formula_.has_divergence()) return;
  loops_.pack_left(shape_.teacher, first, count, teacher_left(worker));
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
