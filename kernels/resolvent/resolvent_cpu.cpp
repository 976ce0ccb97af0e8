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

// A group of shorter segments would spend more of its time on their start than it saves by filling lanes.
constexpr int64_t kShortestSegment = 2 * kWarmUp;
// What a second group of the same row must have to repay its start. Rows of sixteen and more of them are a group each,
// which then has one place in memory and not sixteen.
constexpr int64_t kLongSegment = 1024;
// Complex numbers of scratch that each thread's share of a cache holds.
constexpr int64_t kScratchNumbers = 1 << 15;

// As many segments as all threads' vectors have lanes for. They are an odd multiple of 32 positions long: sixteen
// streams whose distance is a power of two would take the same few places of every cache.
RowSegments segments_of(int64_t rows, int64_t n) {
  const int64_t lanes = kSegmentLanes * at::get_num_threads(), wanted = (lanes + rows - 1) / rows;
  const bool is_long = n >= kSegmentLanes * kLongSegment;
  const int64_t most = is_long ? n / kLongSegment : std::min(kSegmentLanes, n / kShortestSegment);
  const int64_t per_row = std::clamp<int64_t>(wanted, is_long ? kSegmentLanes : 1, std::max<int64_t>(1, most));
  if (per_row == 1) return {rows, 1, n};
  const int64_t length = ((n + per_row - 1) / per_row + 31) / 32 / 2 * 64 + 32;
  return {rows, (n + length - 1) / length, length};
}

int64_t runs_of(int64_t n) { return (n + kGradientRun - 1) / kGradientRun; }

// Some rows, whose scratch stays in the caches.
struct RowsAtOnce {
  Storage storage;
  Tridiagonals matrices;
  RowSegments segments;
  double* entries;

  // One recurrence over all of them.
  void sweep(bool from_right, const double* green, const double* source, double* states, void* out = nullptr) const {
    const ResolventSweep one{from_right, green, source, states, entries, out};
    const int64_t groups = (segments.rows * segments.per_row + kSegmentLanes - 1) / kSegmentLanes;
    const int64_t grain = items_per_task(segments.length * kSegmentLanes);
    at::parallel_for(0, groups, grain, [&](int64_t begin, int64_t end) {
      resolvent_loops_here().sweep(storage, matrices, segments, one, begin, end);
    });
    if (segments.per_row == 1) return;
    at::parallel_for(0, segments.rows, items_per_task(segments.per_row), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) resolvent_loops_here().repair(storage, matrices, segments, one, row);
    });
  }

  // body(row, begin, end) over runs of kGradientRun positions.
  template <class Body>
  void for_runs(Body body) const {
    const int64_t n = matrices.n, runs = runs_of(n), grain = items_per_task(std::min(n, kGradientRun));
    at::parallel_for(0, segments.rows * runs, grain, [&](int64_t first, int64_t last) {
      for (int64_t run = first; run < last; ++run) {
        const int64_t begin = run % runs * kGradientRun;
        body(run / runs, begin, std::min(n, begin + kGradientRun));
      }
    });
  }
};

const void* moved(const void* pointer, int64_t elements, int64_t bytes) {
  return pointer == nullptr ? nullptr : static_cast<const char*>(pointer) + elements * bytes;
}
void* moved(void* pointer, int64_t elements, int64_t bytes) { return static_cast<char*>(pointer) + elements * bytes; }
const double* moved(const double* pointer, int64_t elements) { return pointer ? pointer + elements : nullptr; }

// The arguments as plain pointers, and everything that these point to.
class ResolventWork {
 public:
  ResolventWork(const char* op, const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
                const Documents& documents, const double* state = nullptr)
      : rows(a.numel() / a.size(-1)),
        n(a.size(-1)),
        storage(storage_of(a)),
        bytes(a.element_size()),
        a_(a),
        b_(b.numel() > 0 ? b : a),  // of one position nothing is read
        c_(c.numel() > 0 ? c : a) {
    read_points(op, z.contiguous());
    matrices_ = {a_.data, b_.data, c_.data, a_.stride, b_.stride, c_.stride, points_.data(), nullptr, 0, state, n};
    if (!documents.has_value()) return;
    documents_.emplace(documents->expand(a.sizes()));
    matrices_.documents = static_cast<const int64_t*>(documents_->data);
    matrices_.documents_row = documents_->stride;
  }

  // body(rows at once, the first of them)
  template <class Body>
  void for_rows(Body body) {
    const int64_t at_once = std::max<int64_t>(1, kScratchNumbers * at::get_num_threads() / n);
    for (int64_t first = 0; first < rows; first += at_once) {
      const int64_t count = std::min(at_once, rows - first);
      Tridiagonals m = matrices_;
      m.a = moved(m.a, first * m.a_row, bytes);
      m.b = moved(m.b, first * m.b_row, bytes);
      m.c = moved(m.c, first * m.c_row, bytes);
      m.z += 2 * first;
      m.state = moved(m.state, 2 * first);
      if (m.documents != nullptr) m.documents += first * m.documents_row;
      const RowSegments segments = segments_of(count, n);
      entries_.resize(2 * count * segments.per_row);
      body(RowsAtOnce{storage, m, segments, entries_.data()}, first);
    }
  }

  // Room for a complex number of each position of the rows at once.
  at::Tensor scratch() const {
    const int64_t at_once = std::max<int64_t>(1, kScratchNumbers * at::get_num_threads() / n);
    return at::empty({std::min(at_once, rows), n, 2}, at::kDouble);
  }

  const int64_t rows, n;
  const Storage storage;
  const int64_t bytes;

 private:
  void read_points(const char* op, const at::Tensor& z) {
    points_.resize(2 * rows);
    for (int64_t k = 0; k < 2 * rows; ++k) {
      points_[k] = storage == Storage::kFloat64 ? z.const_data_ptr<double>()[k]
                                                : static_cast<double>(z.const_data_ptr<float>()[k]);
    }
    for (int64_t row = 0; row < rows; ++row) {
      const double re = points_[2 * row], im = points_[2 * row + 1];
      TORCH_CHECK(std::isfinite(re) && std::isfinite(im) && im > 0, "[", op, "] z of row ", row, " is ", re, " + ", im,
                  "i, wanted a finite number with Im z > 0");
    }
  }

  Rows a_, b_, c_;
  std::optional<Rows> documents_;
  std::vector<double> points_, entries_;
  Tridiagonals matrices_{};
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c,
                                                       const at::Tensor& z, bool causal, const Documents& documents,
                                                       bool keep) {
  auto outputs = resolvent_outputs(a, b, c, z, causal, documents, keep);
  const auto& [g, left, right] = outputs;
  if (a.numel() == 0) return outputs;
  ResolventWork work("resolvent", a, b, c, z, documents);
  const at::Tensor lefts = keep ? left : work.scratch();
  const at::Tensor rights = causal || keep ? right : work.scratch();
  work.for_rows([&](const RowsAtOnce& part, int64_t first) {
    const int64_t kept = keep ? 2 * first * work.n : 0;
    double* from_left = lefts.mutable_data_ptr<double>() + kept;
    void* out = moved(g.mutable_data_ptr(), 2 * first * work.n, work.bytes);
    part.sweep(false, nullptr, nullptr, from_left, causal ? out : nullptr);
    if (causal) return;
    double* from_right = rights.mutable_data_ptr<double>() + kept;
    part.sweep(true, nullptr, nullptr, from_right);
    part.for_runs([&](int64_t row, int64_t begin, int64_t end) {
      resolvent_loops_here().diagonal(part.storage, part.matrices, from_left, from_right, out, row, begin, end);
    });
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
  if (a.numel() == 0) return outputs;
  ResolventWork work("resolvent_backward", a, b, c, z, documents);
  const int64_t n = work.n, runs = runs_of(n);
  const at::Tensor dense = grad.contiguous(), source = work.scratch(), left_sums = work.scratch();
  const at::Tensor right_sums = causal ? at::Tensor() : work.scratch();
  std::vector<double> partial_z(2 * work.rows * runs);
  const ResolventLoops& loops = resolvent_loops_here();
  work.for_rows([&](const RowsAtOnce& part, int64_t first) {
    const ResolventGradients all{.grad = moved(dense.const_data_ptr(), 2 * first * n, work.bytes),
                                 .left = left.const_data_ptr<double>() + 2 * first * n,
                                 .right = causal ? nullptr : right.const_data_ptr<double>() + 2 * first * n,
                                 .source = source.mutable_data_ptr<double>(),
                                 .left_sums = left_sums.const_data_ptr<double>(),
                                 .right_sums = causal ? nullptr : right_sums.const_data_ptr<double>(),
                                 .grad_a = moved(grad_a.mutable_data_ptr(), first * n, work.bytes),
                                 .grad_b = moved(grad_b.mutable_data_ptr(), first * (n - 1), work.bytes),
                                 .grad_c = moved(grad_c.mutable_data_ptr(), first * (n - 1), work.bytes),
                                 .partial_z = partial_z.data() + 2 * first * runs};
    part.for_runs([&](int64_t row, int64_t begin, int64_t end) {
      loops.gradient_source(part.storage, part.matrices, all, row, begin, end);
    });
    part.sweep(true, all.left, all.source, left_sums.mutable_data_ptr<double>());
    if (!causal) part.sweep(false, all.right, all.source, right_sums.mutable_data_ptr<double>());
    part.for_runs([&](int64_t row, int64_t begin, int64_t end) {
      loops.gradients(part.storage, part.matrices, all, row, begin, end);
    });
  });
  add_runs(grad_z, partial_z, work.rows, runs);
  return outputs;
}

std::tuple<at::Tensor, at::Tensor> continued(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c,
                                             const at::Tensor& z, const at::Tensor& state) {
  auto outputs = continued_resolvent_outputs(a, b, c, z, state);
  const auto& [g, next] = outputs;
  if (a.numel() == 0) return outputs;
  const at::Tensor before = state.contiguous();
  ResolventWork work("continued_resolvent", a, b, c, z.expand(state.sizes()), std::nullopt,
                     before.const_data_ptr<double>());
  const at::Tensor states = work.scratch();
  work.for_rows([&](const RowsAtOnce& part, int64_t first) {
    auto* from_left = states.mutable_data_ptr<double>();
    part.sweep(false, nullptr, nullptr, from_left, moved(g.mutable_data_ptr(), 2 * first * work.n, work.bytes));
    auto* last = next.mutable_data_ptr<double>() + 2 * first;
    for (int64_t row = 0; row < part.segments.rows; ++row) {
      std::copy_n(from_left + 2 * (row * work.n + work.n - 1), 2, last + 2 * row);
    }
  });
  return outputs;
}

TORCH_LIBRARY_IMPL(limbeck, CPU, m) {
  m.impl("resolvent_forward", forward);
  m.impl("resolvent_backward", backward);
  m.impl("continued_resolvent", continued);
}

}  // namespace
}  // namespace limbeck::kernels
