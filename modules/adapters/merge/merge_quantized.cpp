#include "modules/adapters/merge/merge_quantized.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <fmt/format.h>

#include <cmath>
#include <map>
#include <optional>
#include <stdexcept>

#include "modules/adapters/merge/adapted_hosts.h"
#include "modules/adapters/merge/weight_rounding.h"
#include "modules/errors.h"
#include "modules/precision/casts.h"
#include "modules/precision/packed_weight.h"

namespace limbeck::adapters {
namespace {

constexpr std::array<const char*, kMergeWays.size()> kNames = {"original", "dequantized", "requantized"};

// Every row of a quantized weight, in the parameter's dtype.
template <class Host>
void store_codes(const Host& quantized, const Host& plain) {
  each_row_block(plain.weight().size(0), [&](int64_t row, int64_t count) {
    store_rounded(plain.weight().narrow(0, row, count), quantized.weight_rows(row, count), plain.path());
  });
}

// What new codes of the sum stand for; `packed` takes the codes themselves, where there is one.
template <class Host>
at::Tensor requantized(const at::Tensor& sum, const Host& host, at::ScalarType scales, Host* packed) {
  const precision::PackedWeight codes(precision::move(sum, c10::kCPU), *host.precision().quantized, sum.device(),
                                      scales);
  if (packed != nullptr) packed->replace_packed_weight("weight", codes);
  return codes.rows(0, sum.size(0));
}

at::Tensor requantized(const at::Tensor& sum, const models::ExpertStack& host, at::ScalarType scales,
                       models::ExpertStack* packed) {
  at::Tensor values = at::empty_like(sum);
  std::vector<precision::PackedWeight> stored;  // which share what they hold with the model's
  if (packed != nullptr) stored = packed->packed_parts();
  int64_t row = 0;
  const auto parts = host.packed_parts();
  for (size_t part = 0; part < parts.size(); ++part) {
    const int64_t rows = parts[part].stack().rows;
    for (int64_t expert = 0; expert < parts[part].count(); ++expert) {
      const at::Tensor of_expert = precision::move(sum.select(0, expert).narrow(0, row, rows), c10::kCPU);
      const precision::PackedWeight codes(of_expert, parts[part].format(), sum.device(), scales);
      if (packed != nullptr) stored[part].put(expert, codes);
      at::Tensor place = values.select(0, expert).narrow(0, row, rows);
      precision::cast_into(place, codes.rows(0, rows));
    }
    row += rows;
  }
  return values;
}

void require_quantized_host(const std::vector<AnyHost>& adapted, const std::string& model) {
  for (const AnyHost& host : adapted) {
    if (!packed_in(host).empty()) return;
  }
  throw UsageError(fmt::format("[{}] none of the {} adapted modules is quantized: merge without --quantize and --into",
                               model, adapted.size()));
}

template <class Host>
double change_squared(const at::Tensor& wanted, const Host& host) {
  double sum = 0;
  each_row_block(wanted.size(0), [&](int64_t row, int64_t count) {
    const at::Tensor change = wanted.narrow(0, row, count) - host.weight_rows(row, count);
    const double norm = change.norm().item<double>();
    sum += norm * norm;
  });
  return sum;
}

class Shares {
 public:
  void add(double share, const std::string& module) {
    if (modules_++ == 0 || share >= found_.worst) found_.worst = share, found_.worst_module = module;
    sum_ += share;
  }
  ModuleShare result() const {
    ModuleShare share = found_;
    share.mean = modules_ > 0 ? sum_ / static_cast<double>(modules_) : 0;
    return share;
  }

 private:
  ModuleShare found_;
  double sum_ = 0;
  int64_t modules_ = 0;
};

class Merging {
 public:
  // `scales`: of new codes that are stored as such; none: what they stand for is stored.
  Merging(MergeInto into, std::optional<at::ScalarType> scales) : into_(into), scales_(scales) {}

  // `packed`: receives codes and everything else; null: `target` receives all.
  template <class Host>
  void merge(const Host& host, const Host& target, Host* packed) {
    if (!host.is_quantized()) {
      merge_floats(host, packed != nullptr ? *packed : target);
    } else if (host.adapter() != nullptr) {
      merge_packed(host, target, packed);
    } else if (into_ != MergeInto::kOriginal && packed == nullptr) {
      store_codes(host, target);
    }
  }

  QuantizedMergeReport report() const {
    QuantizedMergeReport report = report_;
    for (size_t i = 0; i < kMergeWays.size(); ++i) report.errors[i] = {weight_[i].result(), changes_[i].result()};
    return report;
  }

 private:
  template <class Host>
  void merge_floats(const Host& host, const Host& target) {
    if (host.adapter() == nullptr) return;
    const models::MergedWeight sum = host.adapter()->merged(target);
    store_rounded(target.weight(), sum.weight, target.path());
    if (sum.bias) store_rounded(*bias_of(target), *sum.bias, target.path());
    ++report_.float_modules;
  }

  template <class Host>
  void merge_packed(const Host& quantized, const Host& plain, Host* packed) {
    const models::MergedWeight wanted = quantized.adapter()->merged(quantized);
    change_ = change_squared(wanted.weight, quantized);
    // First what is computed from the weight that the others overwrite.
    take(MergeInto::kOriginal, quantized.adapter()->merged(plain).weight, wanted.weight, plain);
    take(MergeInto::kDequantized, wanted.weight, wanted.weight, plain);
    const at::ScalarType scales = scales_.value_or(at::kFloat);
    take(MergeInto::kRequantized, requantized(wanted.weight, quantized, scales, packed), wanted.weight, plain);
    if (wanted.bias) store_rounded(*bias_of(packed != nullptr ? *packed : plain), *wanted.bias, plain.path());
    ++report_.modules;
  }

  template <class Host>
  void take(MergeInto way, const at::Tensor& exact, const at::Tensor& wanted, const Host& plain) {
    const auto at = static_cast<size_t>(way);
    const bool as_codes = way == MergeInto::kRequantized && scales_;
    const at::ScalarType stored = as_codes ? exact.scalar_type() : plain.weight().scalar_type();
    const RoundingError error = rounding_error(exact, wanted, stored, plain.path());
    weight_[at].add(error.relative(), plain.path());
    // A module that the adapter leaves as it is has no change that could drown.
    if (change_ > 0) changes_[at].add(std::sqrt(error.lost / change_), plain.path());
    if (way == into_ && !scales_) store_rounded(plain.weight(), exact, plain.path());
  }

  MergeInto into_;
  std::optional<at::ScalarType> scales_;
  double change_ = 0;
  QuantizedMergeReport report_;  // without its errors
  std::array<Shares, kMergeWays.size()> weight_, changes_;
};

}  // namespace

const char* merge_into_name(MergeInto into) { return kNames.at(static_cast<size_t>(into)); }

MergeInto merge_into_named(const std::string& name) {
  for (const MergeInto into : kMergeWays) {
    if (name == merge_into_name(into)) return into;
  }
  throw UsageError(fmt::format("merge into \"{}\": wanted {}", name, fmt::join(kNames, ", ")));
}

QuantizedMergeReport merge_quantized_adapter(const models::BuiltModel& quantized, models::BuiltModel& plain,
                                             MergeInto into, models::BuiltModel* packed) {
  const at::NoGradGuard no_gradient;
  if (packed != nullptr && into != MergeInto::kRequantized) throw std::logic_error("only new codes are packed");
  require_quantized_host(adapted_hosts(quantized), quantized.model->path());
  const auto targets = adapter_hosts(plain);
  std::map<std::string, NamedHost> stored;
  std::optional<at::ScalarType> scales;
  if (packed != nullptr) stored = adapter_hosts(*packed), scales = packed->policy->stream_dtype();
  Merging merging(into, scales);
  for (const auto& [name, named] : adapter_hosts(quantized)) {
    const AnyHost& target = targets.at(name).host;
    const auto merge = [&](auto* host) {
      using Host = decltype(host);
      merging.merge(*host, *std::get<Host>(target), packed != nullptr ? std::get<Host>(stored.at(name).host) : nullptr);
    };
    std::visit(merge, named.host);
  }
  return merging.report();
}

}  // namespace limbeck::adapters
