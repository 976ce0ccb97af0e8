#include "trainer/profile/ceilings.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <chrono>
#include <functional>

#include "kernels/linear/linear.h"
#include "kernels/quantized/quantized_linear.h"
#include "modules/precision/packed_weight.h"
#include "modules/precision/precision.h"
#include "trainer/profile/subject.h"

namespace limbeck::profile {
namespace {

using CeilingClock = std::chrono::steady_clock;

constexpr int64_t kSide = 1024, kRowsRead = int64_t{1} << 26;  // float32: 256 MiB
constexpr double kSecondsOfEach = 0.5;

// Of the quickest of as many as fit into half a second, three at least.
double best_seconds(c10::Device device, const std::function<void()>& work) {
  double best = 1e30;
  const auto begin = CeilingClock::now();
  const auto since = [](CeilingClock::time_point t) {
    return std::chrono::duration<double>(CeilingClock::now() - t).count();
  };
  for (int done = 0; done < 4 || since(begin) < kSecondsOfEach; ++done) {
    const auto start = CeilingClock::now();
    work();
    finish_device(device);
    if (done > 0) best = std::min(best, since(start));
  }
  return best;
}

double gflops_of_product(c10::Device device, const std::string& operands) {
  const auto format = kernels::find_format(operands);
  const auto dtype = format ? at::kFloat : precision::dtype_from_name(operands);
  const at::Tensor x = at::ones({kSide, kSide}, at::TensorOptions().dtype(dtype).device(device));
  double seconds = 0;
  if (format) {
    const precision::PackedWeight weight(at::ones({kSide, kSide}), *format, device);
    seconds = best_seconds(device, [&] { kernels::quantized_linear(x, weight.matrix()); });
  } else {
    seconds = best_seconds(device, [&] { kernels::linear(x, x); });
  }
  return 2.0 * kSide * kSide * kSide / seconds / 1e9;
}

}  // namespace

double Ceilings::gflops_of(const std::string& operands) const {
  const auto found = gflops.find(operands);
  return found == gflops.end() ? 0 : found->second;
}

Ceilings measure_ceilings(c10::Device device, const std::vector<std::string>& operands) {
  const c10::InferenceMode inference;
  Ceilings found;
  for (const std::string& name : operands) {
    try {
      found.gflops[name] = gflops_of_product(device, name);
    } catch (const c10::Error&) {
      // The device has no such product; rows that need one say so.
    }
  }
  const at::Tensor large = at::ones({kRowsRead}, at::TensorOptions().dtype(at::kFloat).device(device));
  found.gb_per_second = static_cast<double>(large.nbytes()) / best_seconds(device, [&] { large.sum(); }) / 1e9;
  return found;
}

}  // namespace limbeck::profile
