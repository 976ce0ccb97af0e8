#include "trainer/quantize/learned_layer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "kernels/quantized/fitted_range.h"
#include "kernels/quantized/learned_rounding.h"
#include "modules/errors.h"
#include "modules/precision/casts.h"

namespace limbeck::quantize {

namespace {

using Tensors = std::vector<at::Tensor>;

constexpr double kLeastFactor = 0.5, kMostOffset = 0.5;

Tensors values_of(const Codes& codes) {
  Tensors values;
  for (const auto& one : codes) values.push_back(one.rows(0, one.matrix().rows));
  return values;
}

// In one order on any number of threads: along each row as ATen has it, then row by row.
double squares_of(const at::Tensor& x) {
  const at::Tensor sums = precision::move(x.square().sum(-1).flatten(), c10::kCPU).contiguous();
  const float* sum = sums.const_data_ptr<float>();
  return std::accumulate(sum, sum + sums.numel(), 0.0);
}

double total_of(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

// The float layer with other weights in its modules; its own again afterwards.
class OtherWeights {
 public:
  explicit OtherWeights(const std::vector<LearnedWeight>& weights) : weights_(weights) {
    for (const LearnedWeight& weight : weights_) {
      own_.push_back(weight.floats->parameter(weight.name));
      trains_.push_back(own_.back().requires_grad());
    }
  }
  ~OtherWeights() {
    put(own_);
    for (size_t i = 0; i < own_.size(); ++i) own_[i].set_requires_grad(trains_[i]);
  }
  OtherWeights(const OtherWeights&) = delete;
  OtherWeights& operator=(const OtherWeights&) = delete;

  void put(const Tensors& weights) {
    for (size_t i = 0; i < weights_.size(); ++i) weights_[i].floats->replace_parameter(weights_[i].name, weights[i]);
  }
  // On the CPU, by matrix.
  Tensors own() const {
    Tensors weights;
    for (const auto& weight : own_) weights.push_back(precision::move(weight.detach(), c10::kCPU).contiguous());
    return apart(weights);
  }
  // From matrices to weights, and back.
  Tensors joined(const Tensors& matrices) const {
    Tensors weights;
    auto next = matrices.begin();
    for (size_t i = 0; i < weights_.size(); ++i) {
      const auto count = static_cast<int64_t>(weights_[i].matrices.size());
      const Tensors of_weight(next, next + count);
      next += count;
      weights.push_back(count == 1 ? of_weight[0].view(own_[i].sizes()) : at::cat(of_weight).view(own_[i].sizes()));
    }
    return weights;
  }
  Tensors apart(const Tensors& weights) const {
    Tensors matrices;
    for (size_t i = 0; i < weights_.size(); ++i) {
      const auto parts =
          weights[i].view({-1, weights[i].size(-1)}).chunk(static_cast<int64_t>(weights_[i].matrices.size()));
      matrices.insert(matrices.end(), parts.begin(), parts.end());
    }
    return matrices;
  }

 private:
  const std::vector<LearnedWeight>& weights_;
  Tensors own_;
  std::vector<bool> trains_;
};

// Offsets and shares of the range, of every module.
struct Rounding {
  Tensors offsets, factors;

  Rounding clone() const {
    Rounding copy;
    for (const auto& offset : offsets) copy.offsets.push_back(offset.detach().clone());
    for (const auto& factor : factors) copy.factors.push_back(factor.detach().clone());
    return copy;
  }
};

class LayerLearner {
 public:
  LayerLearner(size_t layer, const RowStates& targets, const RowStates& inputs,
               const std::vector<LearnedWeight>& weights, const LearningOptions& options)
      : layer_(layer), targets_(targets), inputs_(inputs), options_(options), floats_(weights) {
    for (const LearnedWeight& weight : weights) {
      for (const PackedPlace& matrix : weight.matrices) {
        formats_.push_back(*matrix.module->precision().quantized);
        learns_.push_back(matrix.learns);
      }
    }
    weights_ = floats_.own();
    for (size_t i = 0; i < weights_.size(); ++i) ranges_.push_back(kernels::range_of(weights_[i], formats_[i]));
    for (size_t row = 0; row < inputs_.rows(); ++row) {
      const at::Tensor& state = inputs_.state(row);
      masks_.push_back(at::zeros({state.numel() / state.size(-1), 1}, state.options())
                           .index_fill_(0, inputs_.valid(row), 1.0)
                           .view({state.size(0), state.size(1), 1}));
      values_ += inputs_.valid(row).size(0) * state.size(-1);
    }
  }

  std::vector<double> errors(const Tensors& weights) {
    floats_.put(on_device(floats_.joined(weights)));
    std::vector<double> by_row;
    for (size_t row = 0; row < inputs_.rows(); ++row) by_row.push_back(squares_of(change(row)));
    return by_row;
  }

  // From the codes, which err so much by row.
  void learn(const Codes& start, const std::vector<double>& start_errors, LearnedLayer& found) {
    start_ = start;
    for (size_t i = 0; i < weights_.size(); ++i) {
      const precision::PackedWeight here = start[i].on(c10::kCPU);
      // Scales of 2 and 3 bits may be others than those of the largest values.
      if (formats_[i].kind == kernels::CodeKind::kInt4 && formats_[i].bits < 4)
        ranges_[i] = kernels::range_behind(here.matrix());
      starts_.push_back(kernels::moved_to_codes(weights_[i], ranges_[i], here.matrix()));
      now_.offsets.push_back(at::zeros_like(weights_[i]).set_requires_grad(true));
      now_.factors.push_back(at::ones_like(ranges_[i]).set_requires_grad(true));
    }
    double least = std::numeric_limits<double>::infinity();
    for (int64_t step = 0; step < options_.steps; ++step) {
      const double share = take_step(step, start_errors, least, found);
      if (share < least) least = share, found.step = step;
    }
  }

  // What was learned at the best step, and at the last one.
  Codes best() const { return codes_by(best_); }
  Codes last() const { return codes_by(now_); }
  double mean(const std::vector<double>& errors) const { return total_of(errors) / static_cast<double>(values_); }

 private:
  Tensors on_device(const Tensors& weights) const {
    Tensors placed;
    for (const auto& weight : weights) placed.push_back(precision::move(weight, inputs_.state(0).device()));
    return placed;
  }

  at::Tensor change(size_t row) const {
    const at::Tensor y = targets_.forward(layer_, row, inputs_.state(row));
    return (y - targets_.state(row)) * masks_[row];
  }

  kernels::LearnedRounding rounding(const Rounding& by, size_t i) const {
    return {starts_[i], by.offsets[i], ranges_[i] * by.factors[i], formats_[i], options_.scales};
  }

  Codes codes_by(const Rounding& by) const {
    Codes codes;
    for (size_t i = 0; i < starts_.size(); ++i) {
      codes.push_back(learns_[i] ? precision::PackedWeight(kernels::quantize_learned(rounding(by, i))) : start_[i]);
    }
    return codes;
  }

  // Gives the rows' error as a share of the start's.
  double take_step(int64_t step, const std::vector<double>& start_errors, double least, LearnedLayer& found) {
    Tensors values;
    {
      const at::AutoGradMode recording(true);
      for (size_t i = 0; i < starts_.size(); ++i) values.push_back(kernels::learned_values(rounding(now_, i)));
    }
    Tensors seen, slopes;
    for (const auto& value : values) seen.push_back(value.detach());
    seen = on_device(floats_.joined(seen));
    floats_.put(seen);
    for (at::Tensor& weight : seen) {
      weight.set_requires_grad(true);
      slopes.push_back(at::zeros_like(weight));
    }
    double error = 0, of_start = 0;
    const auto rows = static_cast<int64_t>(inputs_.rows());
    for (int64_t k = 0; k < rows_of_a_step(rows); ++k) {
      const auto row = static_cast<size_t>(row_of_step(step, k, rows));
      error += add_slopes(row, seen, slopes);
      of_start += start_errors[row];
    }
    found.errors.push_back(error);
    const double share = of_start > 0 ? error / of_start : 1;
    if (share < least) best_ = now_.clone();
    move(step, values, floats_.apart(slopes));
    return share;
  }

  double add_slopes(size_t row, const Tensors& seen, Tensors& slopes) const {
    const at::AutoGradMode recording(true);
    const at::Tensor y = targets_.forward(layer_, row, inputs_.state(row));
    const at::Tensor change = (y.detach() - targets_.state(row)) * masks_[row];
    const auto found = torch::autograd::grad({y}, seen, {change}, std::nullopt, false, /*allow_unused=*/true);
    const at::NoGradGuard no_gradient;
    for (size_t i = 0; i < seen.size(); ++i) {
      if (found[i].defined()) slopes[i].add_(found[i]);
    }
    return squares_of(change);
  }

  void move(int64_t step, const Tensors& values, const Tensors& slopes) {
    const double rate =
        (1.0 - static_cast<double>(step) / static_cast<double>(options_.steps)) / static_cast<double>(options_.steps);
    for (size_t i = 0; i < values.size(); ++i) {
      if (!learns_[i]) continue;
      const auto found = torch::autograd::grad({values[i]}, {now_.offsets[i], now_.factors[i]},
                                               {precision::move(slopes[i], c10::kCPU)});
      now_.offsets[i].sub_(found[0].sign(), rate).clamp_(-kMostOffset, kMostOffset);
      now_.factors[i].sub_(found[1].sign(), rate).clamp_(kLeastFactor, 1.0);
    }
  }

  const size_t layer_;
  const RowStates &targets_, &inputs_;
  const LearningOptions options_;
  OtherWeights floats_;
  // By matrix.
  std::vector<kernels::QuantizedFormat> formats_;
  std::vector<bool> learns_;
  Codes start_;
  Tensors weights_, ranges_, starts_, masks_;
  int64_t values_ = 0;
  Rounding now_, best_;
};

struct TriedCodes {
  const char* name;
  Codes codes;
  std::vector<double> errors;
};

}  // namespace

precision::PackedWeight PackedPlace::codes() const {
  const precision::PackedWeight& all = *module->packed_weight(weight);
  kernels::QuantizedMatrix matrix = member < 0 ? all.matrix() : all.member(member).matrix();
  for (at::Tensor& part : matrix.parts) part = part.clone();
  return precision::PackedWeight(std::move(matrix));
}

void PackedPlace::put(const precision::PackedWeight& codes) const {
  const precision::PackedWeight placed = codes.on(module->placement());
  if (member < 0) return module->replace_packed_weight(weight, placed);
  module->replace_packed_member(weight, member, placed);
}

Codes codes_of(const std::vector<LearnedWeight>& weights) {
  Codes codes;
  for (const LearnedWeight& weight : weights) {
    for (const PackedPlace& matrix : weight.matrices) codes.push_back(matrix.codes());
  }
  return codes;
}

int64_t rows_of_a_step(int64_t rows) {
  constexpr int64_t kMostRows = 8;
  return std::min(rows, kMostRows);
}

int64_t row_of_step(int64_t step, int64_t k, int64_t rows) {
  constexpr double kGoldenSection = 0.6180339887498949;
  auto stride = std::max<int64_t>(1, static_cast<int64_t>(kGoldenSection * static_cast<double>(rows)));
  while (std::gcd(stride, rows) != 1) ++stride;
  return (step * rows_of_a_step(rows) + k) * stride % rows;
}

LearnedLayer learn_layer(size_t layer, const RowStates& floats, const RowStates& packed,
                         const std::vector<LearnedWeight>& weights, const Codes& nearest,
                         const LearningOptions& options) {
  LayerLearner learner(layer, floats, packed, weights, options);
  std::vector<TriedCodes> candidates;
  const auto add = [&](const char* name, const Codes& codes) {
    candidates.push_back({name, codes, learner.errors(values_of(codes))});
    return total_of(candidates.back().errors);
  };
  LearnedLayer found;
  double least = add("nearest", nearest);
  if (!std::isfinite(least)) {
    throw NumericError(
        fmt::format("{}: what it gives on the calibration rows is not finite: look at the model's "
                    "weights, or take --rounding=nearest",
                    weights.front().floats->path()));
  }
  size_t kept = 0;
  const auto keep_if_better = [&](double error) {
    if (error < least) least = error, kept = candidates.size() - 1;
  };
  keep_if_better(add("compensated", codes_of(weights)));
  found.nearest = learner.mean(candidates[0].errors);
  found.compensated = learner.mean(candidates[1].errors);
  if (least > 0) {
    const TriedCodes start = candidates[kept];
    learner.learn(start.codes, start.errors, found);
    keep_if_better(add("best step", learner.best()));
    keep_if_better(add("last step", learner.last()));
  }
  found.kept = candidates[kept].name;
  found.learned = learner.mean(candidates[kept].errors);
  auto codes = candidates[kept].codes.begin();
  for (const LearnedWeight& weight : weights) {
    for (const PackedPlace& matrix : weight.matrices) matrix.put(*codes++);
  }
  return found;
}

}  // namespace limbeck::quantize
