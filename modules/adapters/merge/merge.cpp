#include "modules/adapters/merge/merge.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include "modules/adapters/merge/adapted_hosts.h"
#include "modules/adapters/merge/weight_rounding.h"
#include "modules/errors.h"
#include "modules/precision/casts.h"

namespace limbeck::adapters {
namespace {

void put_back(const at::Tensor& parameter, const at::Tensor& original) {
  at::Tensor target = parameter.detach();
  precision::cast_into(target, original);  // of the same dtype: its bits
}

}  // namespace

int64_t Merged::original_bytes() const {
  int64_t bytes = 0;
  for (const Original& one : originals_) {
    bytes += static_cast<int64_t>(one.weight.nbytes() + (one.bias ? one.bias->nbytes() : 0));
  }
  return bytes;
}

void Merged::undo() {
  if (originals_.empty()) {
    throw UsageError(
        "merging cannot be undone: it kept no original weights, or they are back already: merge with "
        "KeepOriginals::kYes, and undo once");
  }
  const at::NoGradGuard no_gradient;
  for (const Original& one : originals_) {
    const auto restore = [&](auto* host) {
      put_back(host->weight(), one.weight);
      if (one.bias) put_back(*bias_of(*host), *one.bias);
      host->use_adapter(one.adapter);
    };
    std::visit(restore, one.host);
  }
  originals_.clear();
}

template <class Host>
void Merged::merge(Host& host, KeepOriginals keep) {
  const models::MergedWeight sum = host.adapter()->merged(host);
  if (keep == KeepOriginals::kYes) {
    std::optional<at::Tensor> bias = bias_of(host);
    if (bias) bias = bias->detach().clone();
    originals_.push_back({&host, host.adapter_in_use(), host.weight().detach().clone(), bias});
  }
  const double error = store_rounded(host.weight(), sum.weight, host.path()).relative();
  if (sum.bias) store_rounded(*bias_of(host), *sum.bias, host.path());
  if (error >= report_.worst_error) report_.worst_error = error, report_.worst_module = host.path();
  host.use_adapter("");
  ++report_.modules;
}

Merged merge_adapter(models::BuiltModel& built, KeepOriginals keep) {
  const at::NoGradGuard no_gradient;
  const std::vector<AnyHost> adapted = adapted_hosts(built);
  for (const AnyHost& host : adapted) {
    if (packed_in(host).empty()) continue;
    throw UsageError(
        fmt::format("[{}] stores its weight in {}, where the change of an adapter would drown in rounding: use the "
                    "adapter beside the model (--adapter), or say what it is added to (limbeck merge --into)",
                    path_of(host), packed_in(host)));
  }
  Merged merged;
  merged.model_ = built.model;
  for (const AnyHost& any : adapted) std::visit([&](auto* host) { merged.merge(*host, keep); }, any);
  return merged;
}

}  // namespace limbeck::adapters
