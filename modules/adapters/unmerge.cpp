#include "modules/adapters/unmerge.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "modules/adapters/adapted_linears.h"
#include "modules/adapters/weight_rounding.h"
#include "modules/errors.h"
#include "modules/precision/casts.h"

namespace limbeck::adapters {
namespace {

using models::Linear;

// What one rounding to a dtype adds to a value: a share of its result, and as much as half the least subnormal.
struct Unit {
  double share, least;
};

template <class Stored>
Unit unit_of() {
  const auto half = static_cast<double>(std::numeric_limits<Stored>::epsilon()) / 2;
  const auto least = static_cast<double>(std::numeric_limits<Stored>::denorm_min()) / 2;
  return {half / (1 - half), least};
}

Unit unit_of(at::ScalarType dtype) {
  const Unit narrow = dtype == at::kHalf ? unit_of<at::Half>() : unit_of<at::BFloat16>();
  const Unit wide = unit_of<float>();  // what half types are computed in
  if (dtype == at::kDouble) return unit_of<double>();
  if (dtype == at::kFloat) return wide;
  return {narrow.share + wide.share * (1 + narrow.share), narrow.least + wide.least};
}

at::Tensor wide_magnitude(const at::Tensor& weight, at::ScalarType wide, const std::string& place) {
  return precision::cast(weight.detach(), weight.scalar_type(), wide, place + " (widened)").abs();
}

double size_of(const at::Tensor& x) { return x.norm().item<double>(); }

// |merged - rounded merged| was at most share |merged| + least, and grew by the gain; the way back rounds once more.
double bound_of(const at::Tensor& merged, const at::Tensor& result, const at::Tensor& gain, at::ScalarType dtype) {
  const Unit unit = unit_of(dtype);
  const at::Tensor error = (merged * unit.share).add_(unit.least).mul_(gain).add_(result, unit.share).add_(unit.least);
  const double size = size_of(result);
  return size > 0 ? size_of(error) / size : std::numeric_limits<double>::infinity();
}

void require_unmergeable(const Linear& linear) {
  const std::string fault = linear.is_quantized()
                                ? "stores its weight in " + precision::storage_name(linear.precision())
                                : linear.adapter()->unmerge_fault();
  if (fault.empty()) return;
  throw UsageError(fmt::format("[{}] its adapter cannot be taken out: it {}: use the folder that it was merged into",
                               linear.path(), fault));
}

UnmergedModule unmerge_one(Linear& linear) {
  const models::UnmergedLinear before = linear.adapter()->unmerged(linear);
  const at::ScalarType wide = before.weight.scalar_type(), dtype = linear.weight().scalar_type();
  const at::Tensor merged = wide_magnitude(linear.weight(), wide, linear.path());
  UnmergedModule report{.module = linear.path()};
  report.rounding = store_rounded(linear.weight(), before.weight, linear.path()).relative();
  if (before.bias) store_rounded(*linear.bias(), *before.bias, linear.path());
  report.bound = bound_of(merged, wide_magnitude(linear.weight(), wide, linear.path()), before.gain, dtype);
  linear.use_adapter("");
  return report;
}

}  // namespace

std::vector<UnmergedModule> unmerge_adapter(models::BuiltModel& built) {
  const at::NoGradGuard no_gradient;
  const std::vector<Linear*> adapted = adapted_linears(built);
  if (adapted.empty()) {
    throw UsageError(
        fmt::format("[{}] no adapter works on it: load the one that its weights have in them", built.model->path()));
  }
  for (const Linear* linear : adapted) require_unmergeable(*linear);
  std::vector<UnmergedModule> modules;
  for (Linear* linear : adapted) modules.push_back(unmerge_one(*linear));
  return modules;
}

}  // namespace limbeck::adapters
