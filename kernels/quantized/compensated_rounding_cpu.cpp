#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "kernels/operator/checks.h"
#include "kernels/operator/operator_handle.h"
#include "kernels/quantized/compensated_rounding.h"
#include "kernels/quantized/double_product_loops.h"
#include "kernels/quantized/fitted_range.h"
#include "kernels/quantized/quantized_operands.h"
#include "kernels/quantized/stored_parts.h"

#ifndef _OPENMP
#error "compile kernels/ with -fopenmp: at::parallel_for is header code and runs on one thread without it"
#endif

namespace limbeck::kernels {
namespace {

constexpr int64_t kRowsAtATime = 16, kColumnsAtATime = 64;

// The nearest code to a value, in float64; `last`: the greatest code of kInt4.
template <CodeKind kind>
int nearest_code(double value, const ValueScale& s, double last) {
  if constexpr (kind == CodeKind::kInt8) {
    return static_cast<int>(std::clamp(std::nearbyint(value / s.scale), -127.0, 127.0));
  } else if constexpr (kind == CodeKind::kInt4) {
    return static_cast<int>(std::clamp(std::nearbyint(value / s.scale) + s.zero, 0.0, last));
  } else {
    const double share = value / s.scale;
    int below = 0;
    for (size_t i = 0; i + 1 < kNf4Levels.size(); ++i)
      below += share > (static_cast<double>(kNf4Levels[i]) + kNf4Levels[i + 1]) / 2 ? 1 : 0;
    return below;
  }
}

struct CompensatedProblem {
  const float* weight;  // [rows, columns], as `nearest` is
  QuantizedView nearest;
  const double *feedback, *pivots;
  const int64_t* order;
  int64_t rows, columns;
};

// Some rows of it, their columns by their places in the order.
template <CodeKind kind>
class CompensatedRows {
 public:
  CompensatedRows(const CompensatedProblem& problem, int64_t row, int64_t count)
      : p_(problem), row_(row), count_(count), wanted_(size()), lost_(size()), codes_(size()) {}

  // Codes by columns, and for each row the error of rounding to nearest and of what it got.
  void round(uint8_t* codes, double* nearest, double* compensated) {
    take_nearest();
    const std::vector<uint8_t> plain = codes_;
    const std::vector<double> error_of_nearest = errors(/*choose=*/false), error = errors(/*choose=*/true);
    for (int64_t i = 0; i < count_; ++i) {
      const auto at = static_cast<size_t>(i);
      const bool better = error[at] < error_of_nearest[at];
      nearest[i] = error_of_nearest[at];
      compensated[i] = better ? error[at] : error_of_nearest[at];
      const uint8_t* chosen = (better ? codes_ : plain).data() + i * p_.columns;
      for (int64_t place = 0; place < p_.columns; ++place) codes[i * p_.columns + p_.order[place]] = chosen[place];
    }
  }

 private:
  size_t size() const { return static_cast<size_t>(count_ * p_.columns); }
  size_t index(int64_t i, int64_t place) const { return static_cast<size_t>(i * p_.columns + place); }
  double weight(int64_t i, int64_t place) const { return p_.weight[(row_ + i) * p_.columns + p_.order[place]]; }
  ValueScale scale(int64_t i, int64_t place) const {
    return scale_at<kind>(p_.nearest, row_ + i, p_.order[place], kDynamicLevels.data());
  }

  void take_nearest() {
    std::vector<uint8_t> by_column(static_cast<size_t>(p_.columns));
    for (int64_t i = 0; i < count_; ++i) {
      load_codes(p_.nearest, row_ + i, by_column.data());
      for (int64_t place = 0; place < p_.columns; ++place)
        codes_[index(i, place)] = by_column[static_cast<size_t>(p_.order[place])];
    }
  }

  // Column by column, each of what is wanted of it; by `choose` the code that is nearest to that, else that of codes_.
  std::vector<double> errors(bool choose) {
    std::vector<double> errors(static_cast<size_t>(count_));
    for (int64_t i = 0; i < count_; ++i) {
      for (int64_t place = 0; place < p_.columns; ++place) wanted_[index(i, place)] = weight(i, place);
    }
    for (int64_t begin = 0; begin < p_.columns; begin += kColumnsAtATime) {
      const int64_t end = std::min(begin + kColumnsAtATime, p_.columns);
      for (int64_t i = 0; i < count_; ++i) {
        for (int64_t place = begin; place < end; ++place) errors[static_cast<size_t>(i)] += step(i, place, end, choose);
      }
      feed(begin, end);
    }
    return errors;
  }

  // What the column adds to the error of its row; the columns up to `end` hear of what it loses.
  double step(int64_t i, int64_t place, int64_t end, bool choose) {
    const ValueScale s = scale(i, place);
    double* wanted = wanted_.data() + index(i, 0);
    uint8_t& code = codes_[index(i, place)];
    if (choose && s.scale > 0)
      code = static_cast<uint8_t>(nearest_code<kind>(wanted[place], s, p_.nearest.format.last_code()));
    const int stored = kind == CodeKind::kInt8 ? static_cast<int8_t>(code) : code;
    const double value = value_of<kind>(stored, s, kNf4Levels.data());
    const double lost = weight(i, place) - value, off = wanted[place] - value;
    lost_[index(i, place)] = lost;
    const double* feedback = p_.feedback + place * p_.columns;
    for (int64_t other = place + 1; other < end; ++other) wanted[other] += lost * feedback[other];
    return p_.pivots[place] * off * off;
  }

  // The columns behind a block hear of what it lost.
  void feed(int64_t begin, int64_t end) {
    if (end == p_.columns) return;
    double_product_loops_here().add({.a = lost_.data() + begin,
                                     .a_stride = p_.columns,
                                     .b = p_.feedback + begin * p_.columns + end,
                                     .b_stride = p_.columns,
                                     .c = wanted_.data() + end,
                                     .c_stride = p_.columns,
                                     .m = count_,
                                     .n = p_.columns - end,
                                     .k = end - begin});
  }

  const CompensatedProblem& p_;
  int64_t row_, count_;
  std::vector<double> wanted_, lost_;
  std::vector<uint8_t> codes_;
};

template <CodeKind kind>
void round_all(const CompensatedProblem& problem, uint8_t* codes, double* nearest, double* compensated) {
  const int64_t parts = rounded_up_quotient(problem.rows, kRowsAtATime);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t row = part * kRowsAtATime, count = std::min(kRowsAtATime, problem.rows - row);
      CompensatedRows<kind>(problem, row, count).round(codes + row * problem.columns, nearest + row, compensated + row);
    }
  });
}

// A matrix, the codes that its scales give, and what each row errs to nearest and compensated.
struct CompensatedCodes {
  QuantizedMatrix matrix;
  std::vector<uint8_t> codes;
  std::vector<double> nearest, compensated;
};

CompensatedCodes compensate(const at::Tensor& wide, QuantizedMatrix matrix, const Compensation& by) {
  const CompensatedProblem problem{.weight = wide.const_data_ptr<float>(),
                                   .nearest = view_of(matrix),
                                   .feedback = by.feedback.const_data_ptr<double>(),
                                   .pivots = by.pivots.const_data_ptr<double>(),
                                   .order = by.order.const_data_ptr<int64_t>(),
                                   .rows = matrix.rows,
                                   .columns = matrix.columns};
  CompensatedCodes found;
  found.codes.resize(static_cast<size_t>(wide.numel()));
  found.nearest.resize(static_cast<size_t>(matrix.rows));
  found.compensated.resize(found.nearest.size());
  const CodeKind kind = matrix.format.kind;
  const auto round = kind == CodeKind::kInt8   ? round_all<CodeKind::kInt8>
                     : kind == CodeKind::kInt4 ? round_all<CodeKind::kInt4>
                                               : round_all<CodeKind::kNf4>;
  round(problem, found.codes.data(), found.nearest.data(), found.compensated.data());
  found.matrix = std::move(matrix);
  return found;
}

// The diagonal of the damped moments, by column.
at::Tensor importance_of(const Compensation& by) {
  const int64_t columns = by.pivots.numel();
  at::Tensor importance = at::zeros({columns}, by.pivots.options());
  const auto* pivot = by.pivots.const_data_ptr<double>();
  const auto* order = by.order.const_data_ptr<int64_t>();
  auto* of = importance.mutable_data_ptr<double>();
  for (int64_t i = 0; i < columns; ++i) {
    const double* feedback = by.feedback.const_data_ptr<double>() + i * columns;
    for (int64_t k = i; k < columns; ++k) of[order[i]] += pivot[k] * feedback[k] * feedback[k];
  }
  return importance;
}

// The rows that err less by other scales get these, and their codes.
void take_better_rows(CompensatedCodes& best, const CompensatedCodes& other) {
  const int64_t columns = best.matrix.columns, groups = best.matrix.parts[1].size(1);
  const int bits = best.matrix.format.bits;
  at::Tensor zeros;
  if (best.matrix.format.has_zeros) zeros = at::zeros(best.matrix.parts[2].sizes(), best.matrix.parts[2].options());
  for (int64_t row = 0; row < best.matrix.rows; ++row) {
    const auto at = static_cast<size_t>(row);
    const bool better = other.compensated[at] < best.compensated[at];
    if (zeros.defined()) {
      const auto* from = view_of(better ? other.matrix : best.matrix).zeros;
      auto* to = reinterpret_cast<uint32_t*>(zeros.mutable_data_ptr<int32_t>());
      for (int64_t group = 0; group < groups; ++group)
        put_in_words(to + group, groups, bits, row, code_in_words(from + group, groups, bits, row));
    }
    if (!better) continue;
    best.compensated[at] = other.compensated[at];
    best.matrix.parts[1].select(0, row).copy_(other.matrix.parts[1].select(0, row));
    std::copy_n(other.codes.data() + row * columns, columns, best.codes.data() + row * columns);
  }
  if (zeros.defined()) best.matrix.parts[2] = zeros;
}

double sum_in_order(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum;
}

using CompensatedParts = std::tuple<std::vector<at::Tensor>, double, double>;

CompensatedParts compensated_cpu(const at::Tensor& weight, const at::Tensor& feedback, const at::Tensor& pivots,
                                 const at::Tensor& order, c10::string_view name, at::ScalarType scales) {
  const QuantizedFormat format = format_named(name);
  QuantizedMatrix matrix = quantize(weight, format, scales);
  const int64_t columns = matrix.columns;
  TORCH_CHECK(feedback.scalar_type() == at::kDouble && feedback.is_contiguous() &&
                  feedback.sizes() == at::IntArrayRef({columns, columns}) && pivots.scalar_type() == at::kDouble &&
                  pivots.is_contiguous() && pivots.sizes() == at::IntArrayRef({columns}) &&
                  order.scalar_type() == at::kLong && order.is_contiguous() &&
                  order.sizes() == at::IntArrayRef({columns}),
              "[quantize_compensated] came with ", described(feedback), ", ", described(pivots), " and ",
              described(order), ", wanted what compensation_of() gives of ", columns, " columns");
  if (weight.numel() == 0) return {matrix.parts, 0.0, 0.0};
  const at::Tensor wide = weight.to(at::kFloat).contiguous();
  const Compensation by{feedback, pivots, order, /*damping=*/0};
  CompensatedCodes best = compensate(wide, std::move(matrix), by);
  if (format.kind == CodeKind::kInt4 && format.bits < 4) {
    const at::Tensor range = fitted_range(wide, importance_of(by), format, scales);
    take_better_rows(best, compensate(wide, quantize_learned({wide, at::zeros_like(wide), range, format, scales}), by));
  }
  at::Tensor stored = at::zeros(best.matrix.parts[0].sizes(), best.matrix.parts[0].options());
  store_codes(format, best.codes.data(), best.matrix.rows, columns, stored);
  best.matrix.parts[0] = stored;
  return {best.matrix.parts, sum_in_order(best.nearest), sum_in_order(best.compensated)};
}

}  // namespace

CompensatedMatrix quantize_compensated(const at::Tensor& weight, const Compensation& compensation,
                                       QuantizedFormat format, at::ScalarType scales) {
  static const auto op = typed_operator<decltype(compensated_cpu)>("limbeck::quantize_compensated");
  auto [parts, nearest, compensated] =
      op.call(weight, compensation.feedback, compensation.pivots, compensation.order, format_name(format), scales);
  return {{format, weight.size(0), weight.size(1), std::move(parts)}, nearest, compensated};
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def(
      "quantize_compensated(Tensor weight, Tensor feedback, Tensor pivots, Tensor order, str format, "
      "ScalarType scales=float32) -> (Tensor[] parts, float nearest, float compensated)");
}
TORCH_LIBRARY_IMPL(limbeck, CPU, m) { m.impl("quantize_compensated", &compensated_cpu); }

}  // namespace limbeck::kernels
