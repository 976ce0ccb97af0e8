#include "modules/adapters/merge/unmerge.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "modules/adapters/merge/adapted_hosts.h"
#include "modules/adapters/merge/weight_rounding.h"
#include "modules/errors.h"
#include "modules/precision/casts.h"

namespace limbeck::adapters {
namespace {

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

template <class Host>
void require_unmergeable(const Host& host, const std::string& packed) {
  const std::string fault = packed.empty() ? host.adapter()->unmerge_fault() : "stores its weight in " + packed;
  if (fault.empty()) return;
  throw UsageError(fmt::format("[{}] its adapter cannot be taken out: it {}: use the folder that it was merged into",
                               host.path(), fault));
}

template <class Host>
UnmergedModule unmerge_one(Host& host) {
  const models::UnmergedWeight before = host.adapter()->unmerged(host);
  const at::ScalarType wide = before.weight.scalar_type(), dtype = host.weight().scalar_type();
  const at::Tensor merged = wide_magnitude(host.weight(), wide, host.path());
  UnmergedModule report{.module = host.path()};
  report.rounding = store_rounded(host.weight(), before.weight, host.path()).relative();
  if (before.bias) store_rounded(*bias_of(host), *before.bias, host.path());
  report.bound = bound_of(merged, wide_magnitude(host.weight(), wide, host.path()), before.gain, dtype);
  host.use_adapter("");
  return report;
}

}  // namespace

std::vector<UnmergedModule> unmerge_adapter(models::BuiltModel& built) {
  const at::NoGradGuard no_gradient;
  const std::vector<AnyHost> adapted = adapted_hosts(built);
  if (adapted.empty()) {
    throw UsageError(
        fmt::format("[{}] no adapter works on it: load the one that its weights have in them", built.model->path()));
  }
  for (const AnyHost& any : adapted) {
    std::visit([&](const auto* host) { require_unmergeable(*host, packed_in(any)); }, any);
  }
  std::vector<UnmergedModule> modules;
  for (const AnyHost& any : adapted) {
    std::visit([&](auto* host) { modules.push_back(unmerge_one(*host)); }, any);
  }
  return modules;
}

}  // namespace limbeck::adapters
