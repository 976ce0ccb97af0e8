#include "modules/adapters/merge/merge_quantized.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <fmt/format.h>

#include <cmath>

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

at::Tensor requantized(const at::Tensor& sum, const precision::ContractModule& host) {
  const precision::PackedWeight codes(precision::move(sum, c10::kCPU), *host.precision().quantized, sum.device());
  return codes.rows(0, sum.size(0));
}

at::Tensor requantized(const at::Tensor& sum, const models::ExpertStack& host) {
  at::Tensor values = at::empty_like(sum);
  int64_t row = 0;
  for (const precision::PackedWeight& part : host.packed_parts()) {
    const int64_t rows = part.stack().rows;
    for (int64_t expert = 0; expert < part.count(); ++expert) {
      const at::Tensor of_expert = precision::move(sum.select(0, expert).narrow(0, row, rows), c10::kCPU);
      const precision::PackedWeight codes(of_expert, part.format(), sum.device());
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
  explicit Merging(MergeInto into) : into_(into) {}

  template <class Host>
  void merge(const Host& host, const Host& target) {
    if (!host.is_quantized()) {
      merge_floats(host, target);
    } else if (host.adapter() != nullptr) {
      merge_packed(host, target);
    } else if (into_ != MergeInto::kOriginal) {
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
  void merge_packed(const Host& quantized, const Host& plain) {
    const models::MergedWeight wanted = quantized.adapter()->merged(quantized);
    change_ = change_squared(wanted.weight, quantized);
    // First what is computed from the weight that the others overwrite.
    take(MergeInto::kOriginal, quantized.adapter()->merged(plain).weight, wanted.weight, plain);
    take(MergeInto::kDequantized, wanted.weight, wanted.weight, plain);
    take(MergeInto::kRequantized, requantized(wanted.weight, quantized), wanted.weight, plain);
    if (wanted.bias) store_rounded(*bias_of(plain), *wanted.bias, plain.path());
    ++report_.modules;
  }

  template <class Host>
  void take(MergeInto way, const at::Tensor& exact, const at::Tensor& wanted, const Host& plain) {
    const auto at = static_cast<size_t>(way);
    const RoundingError error = rounding_error(exact, wanted, plain.weight().scalar_type(), plain.path());
    weight_[at].add(error.relative(), plain.path());
    // A module that the adapter leaves as it is has no change that could drown.
    if (change_ > 0) changes_[at].add(std::sqrt(error.lost / change_), plain.path());
    if (way == into_) store_rounded(plain.weight(), exact, plain.path());
  }

  MergeInto into_;
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
                                             MergeInto into) {
  const at::NoGradGuard no_gradient;
  require_quantized_host(adapted_hosts(quantized), quantized.model->path());
  const auto targets = adapter_hosts(plain);
  Merging merging(into);
  for (const auto& [name, named] : adapter_hosts(quantized)) {
    const AnyHost& target = targets.at(name).host;
    const auto merge = [&](auto* host) { merging.merge(*host, *std::get<decltype(host)>(target)); };
    std::visit(merge, named.host);
  }
  return merging.report();
}

}  // namespace limbeck::adapters
