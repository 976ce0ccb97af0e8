#include "trainer/quantize/learned_layer.h"

#include <ATen/core/grad_mode.h>
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
using Codes = std::vector<precision::PackedWeight>;

constexpr double kLeastFactor = 0.5, kMostOffset = 0.5;

Codes codes_of(const PackedLinears& modules) {
  Codes codes;
  for (const auto& module : modules) codes.push_back(*module->packed());
  return codes;
}

void put(const PackedLinears& modules, const Codes& codes) {
  for (size_t i = 0; i < modules.size(); ++i) modules[i]->replace_packed_weight("weight", codes[i]);
}

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
  explicit OtherWeights(PackedLinears modules) : modules_(std::move(modules)) {
    for (const auto& module : modules_) {
      own_.push_back(module->weight());
      trains_.push_back(module->weight().requires_grad());
    }
  }
  ~OtherWeights() {
    put(own_);
    for (size_t i = 0; i < own_.size(); ++i) own_[i].set_requires_grad(trains_[i]);
  }
  OtherWeights(const OtherWeights&) = delete;
  OtherWeights& operator=(const OtherWeights&) = delete;

  void put(const Tensors& weights) {
    for (size_t i = 0; i < modules_.size(); ++i) modules_[i]->replace_parameter("weight", weights[i]);
  }
  // On the CPU.
  Tensors own() const {
    Tensors weights;
    for (const auto& weight : own_) weights.push_back(precision::move(weight.detach(), c10::kCPU).contiguous());
    return weights;
  }

 private:
  PackedLinears modules_;
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
  LayerLearner(size_t layer, const RowStates& targets, const RowStates& inputs, const PackedLinears& float_modules,
               const Codes& nearest, const LearningOptions& options)
      : layer_(layer), targets_(targets), inputs_(inputs), options_(options), floats_(float_modules) {
    for (const auto& codes : nearest) formats_.push_back(codes.format());
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
    floats_.put(on_device(weights));
    std::vector<double> by_row;
    for (size_t row = 0; row < inputs_.rows(); ++row) by_row.push_back(squares_of(change(row)));
    return by_row;
  }

  // From the codes, which err so much by row.
  void learn(const Codes& start, const std::vector<double>& start_errors, LearnedLayer& found) {
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
    for (size_t i = 0; i < starts_.size(); ++i) codes.emplace_back(kernels::quantize_learned(rounding(by, i)));
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
    seen = on_device(seen);
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
    move(step, values, slopes);
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
  std::vector<kernels::QuantizedFormat> formats_;
  Tensors weights_, ranges_, starts_, masks_;
  int64_t values_ = 0;
  Rounding now_, best_;
};

struct TriedCodes {
  const char* name;
  Codes codes;
  std::vector<double> errors;
};

PackedLinears float_modules_of(const PackedLinears& packed, const LinearsByPath& floats) {
  PackedLinears found;
  for (const auto& module : packed) found.push_back(floats.at(module->path()));
  return found;
}

}  // namespace

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

LearnedLayer learn_layer(size_t layer, RowStates& floats, const RowStates& packed, const PackedLinears& modules,
                         const LinearsByPath& float_modules, const LearningOptions& options,
                         std::vector<RoundedModule>& rounded) {
  const Codes nearest = codes_of(modules);
  rounded = compensate_stage(layer, packed, modules, float_modules, options.scales);
  floats.advance(layer);
  LayerLearner learner(layer, floats, packed, float_modules_of(modules, float_modules), nearest, options);
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
                    modules.front()->path()));
  }
  size_t kept = 0;
  const auto keep_if_better = [&](double error) {
    if (error < least) least = error, kept = candidates.size() - 1;
  };
  keep_if_better(add("compensated", codes_of(modules)));
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
  Codes placed;
  for (const auto& codes : candidates[kept].codes) placed.push_back(codes.on(modules.front()->placement()));
  put(modules, placed);
  return found;
}

}  // namespace limbeck::quantize
