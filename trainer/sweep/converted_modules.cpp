#include "trainer/sweep/converted_modules.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/isfinite.h>
#include <fmt/format.h>

#include "modules/precision/contract_modules.h"
#include "modules/precision/policy.h"

namespace limbeck::sweep {

namespace {

bool same_storage(const precision::Precision& one, const precision::Precision& other) {
  return one.storage == other.storage && one.compute == other.compute && one.quantized == other.quantized;
}

int64_t infinite_values(const at::Tensor& x) { return x.numel() - at::isfinite(x).sum().item<int64_t>(); }

}  // namespace

ConvertedModules::ConvertedModules(const models::BuiltModel& model, const std::vector<std::string>& rules) {
  const at::NoGradGuard no_gradient;
  std::vector<precision::Rule> parsed;
  for (const std::string& rule : rules) parsed.push_back(precision::parse_rule(rule, "sweep"));
  const precision::PrecisionPolicy policy = model.policy->with(parsed);
  for (const auto& module : precision::contract_modules(*model.model)) {
    const precision::Precision wanted = policy.resolve(module->path(), module->role());
    if (same_storage(wanted, module->precision())) continue;
    modules_.push_back(module);
    others_.push_back(module->stored_under(wanted));
    bytes_before_ += module->footprint().bytes;
    for (const auto& entry : others_.back().parameters) {
      const int64_t lost = infinite_values(entry.value()) - infinite_values(module->parameter(entry.key()));
      if (lost > 0 && overflow_.empty()) {
        overflow_ = fmt::format("{}.{}: {} of {} weights are beyond {}", module->path(), entry.key(), lost,
                                entry.value().numel(), precision::dtype_name(entry.value().scalar_type()));
      }
    }
  }
  policy.require_all_rules_used(model.model->path());
  exchange();
  for (const auto& module : modules_) bytes_ += module->footprint().bytes;
  exchange();
}

std::vector<std::string> ConvertedModules::paths() const {
  std::vector<std::string> paths;
  for (const auto& module : modules_) paths.push_back(module->path());
  return paths;
}

void ConvertedModules::exchange() {
  for (size_t i = 0; i < modules_.size(); ++i) others_[i] = modules_[i]->exchange(std::move(others_[i]));
}

}  // namespace limbeck::sweep
