#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/task_grain.h"
#include "kernels/operator/checks.h"
#include "kernels/resolvent/resolvent_loops.h"
#include "kernels/resolvent/resolvent_operators.h"

namespace limbeck::kernels {
namespace {

using Documents = std::optional<at::Tensor>;

// Shorter segments would spend more than a fifth of their time on the start.
constexpr int64_t kShortestSegment = 4 * kWarmUp;
constexpr int64_t kWeight = 4;  // a position costs as much as so many elements of a norm

// A tensor as Rows, where [.., 0] too.
struct OptionalRows {
  explicit OptionalRows(const at::Tensor& from) {
    if (from.numel() > 0) rows.emplace(from);
  }
  const void* data() const { return rows ? rows->data : nullptr; }
  int64_t stride() const { return rows ? rows->stride : 0; }
  std::optional<Rows> rows;
};

// The arguments as plain pointers, and everything that these point to.
struct ResolventWork {
  ResolventWork(const char* op, const at::Tensor& a_given, const at::Tensor& b_given, const at::Tensor& c_given,
                const at::Tensor& z, const Documents& documents_given)
      : storage(storage_of(a_given)), a(a_given), b(b_given), c(c_given) {
    const int64_t n = a_given.size(-1);
    rows = a_given.numel() / n;
    const at::Tensor points = z.contiguous();
    z_pairs.resize(2 * rows);
    for (int64_t k = 0; k < 2 * rows; ++k) {
      z_pairs[k] = storage == Storage::kFloat64 ? points.const_data_ptr<double>()[k]
                                                : static_cast<double>(points.const_data_ptr<float>()[k]);
    }
    for (int64_t row = 0; row < rows; ++row) {
      const double re = z_pairs[2 * row], im = z_pairs[2 * row + 1];
      TORCH_CHECK(std::isfinite(re) && std::isfinite(im) && im > 0, "[", op, "] z of row ", row, " is ", re, " + ", im,
                  "i, wanted a finite number with Im z > 0");
    }
    matrices = {a.data, b.data(), c.data(), a.stride, b.stride(), c.stride(), z_pairs.data(), nullptr, 0, nullptr, n};
    if (documents_given.has_value()) {
      documents.emplace(documents_given->expand(a_given.sizes()));
      matrices.documents = static_cast<const int64_t*>(documents->data);
      matrices.documents_row = documents->stride;
    }
    // As many segments as all threads' vectors have lanes for.
    const int64_t lanes = kSegmentLanes * at::get_num_threads();
    const int64_t wanted = (lanes + rows - 1) / std::max<int64_t>(1, rows);
    segments.rows = rows;
    segments.per_row = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, n / kShortestSegment));
    segments.length = (n + segments.per_row - 1) / segments.per_row;
    entries.resize(2 * rows * segments.per_row);
  }

  // One recurrence over all rows; `states` [rows, n, 2].
  void sweep(bool from_right, const double* green, const double* source, double* states) {
    const ResolventSweep one{from_right, green, source, states, entries.data()};
    const int64_t groups = (rows * segments.per_row + kSegmentLanes - 1) / kSegmentLanes;
    at::parallel_for(0, groups, items_per_task(kWeight * segments.length * kSegmentLanes),
                     [&](int64_t begin, int64_t end) {
                       resolvent_loops_here().sweep(storage, matrices, segments, one, begin, end);
                     });
    if (segments.per_row == 1) return;
    for (int64_t row = 0; row < rows; ++row) resolvent_loops_here().repair(storage, matrices, segments, one, row);
  }

  // body(row, begin, end) over runs of kGradientRun positions.
  template <class Body>
  void for_runs(Body body) const {
    const int64_t n = matrices.n, runs = (n + kGradientRun - 1) / kGradientRun;
    at::parallel_for(0, rows * runs, items_per_task(kWeight * std::min(n, kGradientRun)),
                     [&](int64_t first, int64_t last) {
                       for (int64_t run = first; run < last; ++run) {
                         const int64_t begin = run % runs * kGradientRun;
                         body(run / runs, begin, std::min(n, begin + kGradientRun));
                       }
                     });
  }

  Storage storage;
  Rows a;
  OptionalRows b, c;
  std::optional<Rows> documents;
  std::vector<double> z_pairs, entries;
  int64_t rows = 0;
  Tridiagonals matrices{};
  RowSegments segments{};
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c,
                                                       const at::Tensor& z, bool causal, const Documents& documents) {
  auto outputs = resolvent_outputs(a, b, c, z, causal, documents);
  const auto& [g, left, right] = outputs;
  ResolventWork work("resolvent", a, b, c, z, documents);
  auto* from_left = left.mutable_data_ptr<double>();
  double* from_right = causal ? nullptr : right.mutable_data_ptr<double>();
  void* out = g.mutable_data_ptr();
  work.sweep(false, nullptr, nullptr, from_left);
  if (!causal) work.sweep(true, nullptr, nullptr, from_right);
  work.for_runs([&](int64_t row, int64_t begin, int64_t end) {
    resolvent_loops_here().diagonal(work.storage, work.matrices, from_left, from_right, out, row, begin, end);
  });
  return outputs;
}

// z's gradient of each row: its runs in order.
void add_runs(const at::Tensor& grad_z, const std::vector<double>& partial, int64_t rows, int64_t runs) {
  for (int64_t k = 0; k < 2 * rows; ++k) {
    double sum = 0.0;
    for (int64_t run = 0; run < runs; ++run) sum += partial[2 * (k / 2 * runs + run) + k % 2];
    if (grad_z.scalar_type() == at::kDouble) {
      grad_z.mutable_data_ptr<double>()[k] = sum;
    } else {
      grad_z.mutable_data_ptr<float>()[k] = static_cast<float>(sum);
    }
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad, const at::Tensor& a,
                                                                    const at::Tensor& b, const at::Tensor& c,
                                                                    const at::Tensor& z, bool causal,
                                                                    const Documents& documents, const at::Tensor& left,
                                                                    const at::Tensor& right) {
  auto outputs = resolvent_gradients(grad, a, b, c, z, causal, documents, left, right);
  const auto& [grad_a, grad_b, grad_c, grad_z] = outputs;
  ResolventWork work("resolvent_backward", a, b, c, z, documents);
  const at::Tensor dense = grad.contiguous(), source = at::empty_like(left), left_sums = at::empty_like(left);
  const at::Tensor right_sums = causal ? at::Tensor() : at::empty_like(left);
  const int64_t runs = (work.matrices.n + kGradientRun - 1) / kGradientRun;
  std::vector<double> partial_z(2 * work.rows * runs);
  const ResolventGradients all{.grad = dense.const_data_ptr(),
                               .left = left.const_data_ptr<double>(),
                               .right = causal ? nullptr : right.const_data_ptr<double>(),
                               .source = source.mutable_data_ptr<double>(),
                               .left_sums = left_sums.const_data_ptr<double>(),
                               .right_sums = causal ? nullptr : right_sums.const_data_ptr<double>(),
                               .grad_a = grad_a.mutable_data_ptr(),
                               .grad_b = grad_b.mutable_data_ptr(),
                               .grad_c = grad_c.mutable_data_ptr(),
                               .partial_z = partial_z.data()};
  const ResolventLoops& loops = resolvent_loops_here();
  work.for_runs([&](int64_t row, int64_t begin, int64_t end) {
    loops.gradient_source(work.storage, work.matrices, all, row, begin, end);
  });
  work.sweep(true, all.left, all.source, left_sums.mutable_data_ptr<double>());
  if (!causal) work.sweep(false, all.right, all.source, right_sums.mutable_data_ptr<double>());
  work.for_runs([&](int64_t row, int64_t begin, int64_t end) {
    loops.gradients(work.storage, work.matrices, all, row, begin, end);
  });
  add_runs(grad_z, partial_z, work.rows, runs);
  return outputs;
}

std::tuple<at::Tensor, at::Tensor> continued(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c,
                                             const at::Tensor& z, const at::Tensor& state) {
  auto outputs = continued_resolvent_outputs(a, b, c, z, state);
  const auto& [g, next] = outputs;
  std::vector<int64_t> shape = a.sizes().vec();
  shape.back() = 2;
  ResolventWork work("continued_resolvent", a, b, c, z.expand(shape), std::nullopt);
  const at::Tensor before = state.contiguous();
  work.matrices.state = before.const_data_ptr<double>();
  shape.back() = work.matrices.n;
  shape.push_back(2);
  const at::Tensor states = at::empty(shape, state.options());
  auto* from_left = states.mutable_data_ptr<double>();
  void* out = g.mutable_data_ptr();
  work.sweep(false, nullptr, nullptr, from_left);
  work.for_runs([&](int64_t row, int64_t begin, int64_t end) {
    resolvent_loops_here().diagonal(work.storage, work.matrices, from_left, nullptr, out, row, begin, end);
  });
  next.copy_(states.select(-2, work.matrices.n - 1));
  return outputs;
}

TORCH_LIBRARY_IMPL(limbeck, CPU, m) {
  m.impl("resolvent_forward", forward);
  m.impl("resolvent_backward", backward);
  m.impl("continued_resolvent", continued);
}

}  // namespace
}  // namespace limbeck::kernels
