#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/operator/checks.h"
#include "kernels/operator/operator_handle.h"
#include "kernels/operator/rounded_up.h"
#include "kernels/quantized/compensated_rounding.h"
#include "kernels/quantized/double_product_loops.h"

#ifndef _OPENMP
#error "compile kernels/ with -fopenmp: at::parallel_for is header code and runs on one thread without it"
#endif

namespace limbeck::kernels {
namespace {

constexpr int64_t kFactorBlock = 64, kMomentRows = 256;
constexpr double kLeastDamping = 0.01, kMostDamping = 10;

// Calls work(block) for each of so many, whose work grows or falls evenly: the first goes with the last.
template <class Work>
void for_paired_blocks(int64_t blocks, const Work& work) {
  at::parallel_for(0, rounded_up_quotient(blocks, 2), 1, [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      work(pair);
      if (blocks - 1 - pair != pair) work(blocks - 1 - pair);
    }
  });
}

void check_square(const char* op, const at::Tensor& sums) {
  TORCH_CHECK(
      sums.dim() == 2 && sums.size(0) == sums.size(1) && sums.scalar_type() == at::kDouble && sums.is_contiguous(), "[",
      op, "] sums are ", described(sums), ", wanted float64 [columns, columns], contiguous");
}

void add_moments_cpu(at::Tensor& sums, const at::Tensor& x) {
  const auto dtype = x.scalar_type();
  check_square("add_second_moments", sums);
  TORCH_CHECK(x.dim() == 2 && x.size(1) == sums.size(0) &&
                  (dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf),
              "[add_second_moments] x is ", described(x), ", wanted float32, bfloat16 or float16 [rows, ", sums.size(0),
              "]");
  const int64_t columns = x.size(1);
  auto* sum = sums.mutable_data_ptr<double>();
  const auto& loops = double_product_loops_here();
  for (int64_t row = 0; row < x.size(0); row += kMomentRows) {
    const at::Tensor some = x.narrow(0, row, std::min(kMomentRows, x.size(0) - row)).to(at::kDouble).contiguous();
    const at::Tensor across = some.t().contiguous();
    const auto* by_row = some.const_data_ptr<double>();
    const auto* by_column = across.const_data_ptr<double>();
    const int64_t count = some.size(0);
    for_paired_blocks(rounded_up_quotient(columns, kFactorBlock), [&](int64_t block) {
      const int64_t first = block * kFactorBlock;
      loops.add({.a = by_column + first * count,
                 .a_stride = count,
                 .b = by_row + first,
                 .b_stride = columns,
                 .c = sum + first * columns + first,
                 .c_stride = columns,
                 .m = std::min(kFactorBlock, columns - first),
                 .n = columns - first,
                 .k = count});
    });
  }
}

// A block on the diagonal; false where it is not positive.
bool factor_block(double* m, int64_t n, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    double* own = m + row * n;
    for (int64_t column = begin; column <= row; ++column) {
      const double* other = m + column * n;
      double rest = own[column];
      for (int64_t k = begin; k < column; ++k) rest -= own[k] * other[k];
      if (column < row) {
        own[column] = rest / other[column];
      } else if (rest > 0 && std::isfinite(rest)) {
        own[column] = std::sqrt(rest);
      } else {
        return false;
      }
    }
  }
  return true;
}

// The columns of the block, of a row below it.
void solve_row(double* own, const double* m, int64_t n, int64_t begin, int64_t end) {
  for (int64_t column = begin; column < end; ++column) {
    const double* other = m + column * n;
    double rest = own[column];
    for (int64_t k = begin; k < column; ++k) rest -= own[k] * other[k];
    own[column] = rest / other[column];
  }
}

// m = L L^T in place, by its lower triangle; false where m is not positive.
bool factor_cholesky(double* m, int64_t n) {
  const auto& loops = double_product_loops_here();
  std::vector<double> across;
  for (int64_t begin = 0; begin < n; begin += kFactorBlock) {
    const int64_t end = std::min(begin + kFactorBlock, n), rest = n - end, width = end - begin;
    if (!factor_block(m, n, begin, end)) return false;
    across.resize(static_cast<size_t>(width * rest));
    const int64_t blocks = rounded_up_quotient(rest, kFactorBlock);
    at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
      for (int64_t row = end + first * kFactorBlock; row < std::min(end + last * kFactorBlock, n); ++row) {
        solve_row(m + row * n, m, n, begin, end);
        for (int64_t k = 0; k < width; ++k) across[static_cast<size_t>(k * rest + row - end)] = -m[row * n + begin + k];
      }
    });
    for_paired_blocks(blocks, [&](int64_t block) {
      const int64_t first = end + block * kFactorBlock, last = std::min(first + kFactorBlock, n);
      loops.add({.a = m + first * n + begin,
                 .a_stride = n,
                 .b = across.data(),
                 .b_stride = rest,
                 .c = m + first * n + end,
                 .c_stride = n,
                 .m = last - first,
                 .n = last - end,
                 .k = width});
    });
  }
  return true;
}

std::vector<int64_t> falling_order(const double* sums, int64_t n) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return sums[a * n + a] > sums[b * n + b]; });
  return order;
}

// H in the reverse of the order: what a Cholesky factorisation ends with is what rounding begins with.
void fill_reversed(const double* sums, int64_t n, const std::vector<int64_t>& order, double added, double* m) {
  at::parallel_for(0, n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t own = order[static_cast<size_t>(n - 1 - row)];
      for (int64_t column = 0; column <= row; ++column) {
        const int64_t other = order[static_cast<size_t>(n - 1 - column)];
        m[row * n + column] = sums[std::min(own, other) * n + std::max(own, other)] + (row == column ? added : 0);
      }
      for (int64_t column = row + 1; column < n; ++column) m[row * n + column] = 0;
    }
  });
}

// From the reversed L, in place, to R with ones on its diagonal.
void turn_to_feedback(double* m, int64_t n, double* pivots) {
  std::reverse(m, m + n * n);
  std::vector<double> diagonal(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    diagonal[static_cast<size_t>(i)] = m[i * n + i];
    pivots[i] = m[i * n + i] * m[i * n + i];
  }
  at::parallel_for(0, n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      std::fill_n(m + row * n, row, 0.0);
      for (int64_t column = row; column < n; ++column) m[row * n + column] /= diagonal[static_cast<size_t>(column)];
    }
  });
}

using CompensationParts = std::tuple<at::Tensor, at::Tensor, at::Tensor, double>;

CompensationParts compensation_cpu(const at::Tensor& sums) {
  check_square("compensation_of", sums);
  const int64_t n = sums.size(0);
  const auto* sum = sums.const_data_ptr<double>();
  double diagonal = 0;
  for (int64_t i = 0; i < n; ++i) diagonal += sum[i * n + i];
  TORCH_CHECK(std::isfinite(diagonal),
              "[compensation_of] the sums of squares are not finite: an input was NaN, "
              "infinite or too large");
  TORCH_CHECK(diagonal > 0, "[compensation_of] the sums are those of no inputs, or of zeros alone");
  const std::vector<int64_t> order = falling_order(sum, n);
  at::Tensor feedback = at::empty_like(sums), pivots = at::empty({n}, sums.options());
  at::Tensor places = at::empty({n}, sums.options().dtype(at::kLong));
  std::copy(order.begin(), order.end(), places.mutable_data_ptr<int64_t>());
  auto* m = feedback.mutable_data_ptr<double>();
  for (double damping = kLeastDamping; damping <= kMostDamping; damping *= 10) {
    fill_reversed(sum, n, order, damping * diagonal / static_cast<double>(n), m);
    if (!factor_cholesky(m, n)) continue;
    turn_to_feedback(m, n, pivots.mutable_data_ptr<double>());
    return {feedback, pivots, places, damping};
  }
  TORCH_CHECK(false, "[compensation_of] the sums are no second moments: with ", kMostDamping,
              " times their mean diagonal added they are still not positive");
}

}  // namespace

void add_second_moments(at::Tensor& sums, const at::Tensor& x) {
  static const auto op = typed_operator<decltype(add_moments_cpu)>("limbeck::add_second_moments");
  op.call(sums, x);
}

Compensation compensation_of(const at::Tensor& sums) {
  static const auto op = typed_operator<decltype(compensation_cpu)>("limbeck::compensation_of");
  const auto [feedback, pivots, order, damping] = op.call(sums);
  return {feedback, pivots, order, damping};
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def("add_second_moments(Tensor(a!) sums, Tensor x) -> ()");
  m.def("compensation_of(Tensor sums) -> (Tensor feedback, Tensor pivots, Tensor order, float damping)");
}
TORCH_LIBRARY_IMPL(limbeck, CPU, m) {
  m.impl("add_second_moments", &add_moments_cpu);
  m.impl("compensation_of", &compensation_cpu);
}

}  // namespace limbeck::kernels
