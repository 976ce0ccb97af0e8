#include "modules/models/network/rope_table.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "modules/precision/casts.h"

namespace limbeck::models {

namespace {

at::Tensor exponents(int64_t dim) {
  return at::arange(0, dim, 2, at::TensorOptions().dtype(at::kFloat).device(at::kCPU)) / static_cast<double>(dim);
}

at::Tensor yarn(const Rope& rope) {
  const auto dim = static_cast<double>(rope.rotary_dim);
  auto correction = [&](double rotations) {
    return dim * std::log(static_cast<double>(rope.original_positions) / (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(rope.theta));
  };
  double low = correction(rope.beta_fast), high = correction(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;
  const at::Tensor powers = at::pow(rope.theta, exponents(rope.rotary_dim));
  const at::Tensor ramp =
      ((at::arange(rope.rotary_dim / 2, at::TensorOptions().dtype(at::kFloat)) - low) / (high - low)).clamp(0.0, 1.0);
  const at::Tensor keep = 1.0 - ramp;
  return (1.0 / (rope.factor * powers)) * (1.0 - keep) + (1.0 / powers) * keep;
}

at::Tensor llama3(const Rope& rope) {
  const at::Tensor frequencies = 1.0 / at::pow(rope.theta, exponents(rope.rotary_dim));
  const auto original = static_cast<double>(rope.original_positions);
  const double low_wavelength = original / rope.low_freq_factor, high_wavelength = original / rope.high_freq_factor;
  at::Tensor result = frequencies.clone();
  float* out = result.data_ptr<float>();
  for (int64_t i = 0; i < result.numel(); ++i) {
    const double frequency = out[i], wavelength = 2.0 * std::numbers::pi / frequency;
    if (wavelength < high_wavelength) continue;
    double scaled = frequency / rope.factor;
    if (wavelength <= low_wavelength) {
      const double smooth =
          (original / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
      scaled = (1.0 - smooth) * scaled + smooth * frequency;
    }
    out[i] = static_cast<float>(scaled);
  }
  return result;
}

}  // namespace

RopeTable::RopeTable(const Rope& rope, int64_t max_positions) : rope_(rope), max_positions_(max_positions) {}

bool RopeTable::depends_on_length() const {
  return rope_.type == RopeType::kDynamic || rope_.type == RopeType::kLongRope;
}

at::Tensor RopeTable::inverse_frequencies(int64_t length) const {
  switch (rope_.type) {
    case RopeType::kYarn:
      return yarn(rope_);
    case RopeType::kLlama3:
      return llama3(rope_);
    case RopeType::kLinear:
      return 1.0 / at::pow(rope_.theta, exponents(rope_.rotary_dim)) / rope_.factor;
    case RopeType::kDynamic: {
      const auto limit = static_cast<double>(max_positions_), dim = static_cast<double>(rope_.rotary_dim);
      const double reach = std::max(static_cast<double>(length), limit);
      const double theta =
          rope_.theta * std::pow(rope_.factor * reach / limit - (rope_.factor - 1.0), dim / (dim - 2.0));
      return 1.0 / at::pow(theta, exponents(rope_.rotary_dim));
    }
    case RopeType::kLongRope: {
      const auto& factors = length > rope_.original_positions ? rope_.long_factor : rope_.short_factor;
      const at::Tensor scale = at::tensor(at::ArrayRef<double>(factors), at::TensorOptions().dtype(at::kFloat));
      return 1.0 / (scale * at::pow(rope_.theta, exponents(rope_.rotary_dim)));
    }
    case RopeType::kDefault:
    case RopeType::kNone:
      break;
  }
  return 1.0 / at::pow(rope_.theta, exponents(rope_.rotary_dim));
}

// The device gets them once: in each forward they would be a copy, and one that cannot be recorded.
at::Tensor RopeTable::frequencies_on(c10::Device device, int64_t length) const {
  if (depends_on_length() || device.is_meta()) return precision::upload(inverse_frequencies(length), device);
  if (!frequencies_.defined() || frequencies_.device() != device) {
    frequencies_ = precision::upload(inverse_frequencies(length), device);
  }
  return frequencies_;
}

std::pair<at::Tensor, at::Tensor> RopeTable::angles(const at::Tensor& positions_bt, int64_t length) const {
  const at::NoGradGuard no_gradient;
  const at::Tensor frequencies = frequencies_on(positions_bt.device(), length);
  // int64 positions times float32 frequencies: ATen promotes to float32, exact for positions below 2^24.
  const at::Tensor angle = positions_bt.unsqueeze(-1) * frequencies;
  if (rope_.attention_factor == 1.0) return {angle.cos(), angle.sin()};
  return {angle.cos() * rope_.attention_factor, angle.sin() * rope_.attention_factor};
}

}  // namespace limbeck::models
