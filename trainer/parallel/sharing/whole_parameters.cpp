#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include "kernels/adamw/adamw.h"
#include "kernels/operator/wide_type.h"
#include "modules/precision/casts.h"
#include "trainer/parallel/sharing/parameter_shares.h"
#include "trainer/parallel/sums/wide_sum.h"

namespace limbeck::parallel {
namespace {

class WholeParameters : public ParameterShares {
 public:
  explicit WholeParameters(const std::vector<NamedParameter>& parameters) {
    for (const NamedParameter& parameter : parameters) {
      shares_.push_back({parameter.tensor, 0});
      sums_.push_back({});
    }
  }

  void accumulate(int64_t micro_batch, int64_t micro_batches) override {
    for (size_t i = 0; i < shares_.size(); ++i) take(shares_[i].weight, sums_[i], micro_batch == 0, micro_batches == 1);
  }
  void finish() override {}
  at::Tensor gradient(size_t parameter) const override { return sums_[parameter].gradient; }
  void drop() override {
    for (Sum& sum : sums_) sum.gradient.reset();
  }

 private:
  struct Sum {
    at::Tensor gradient;     // so far; undefined: none came
    at::Tensor accumulator;  // reused by every update of several micro-batches
  };

  static void take(const at::Tensor& parameter, Sum& sum, bool first, bool only) {
    at::Tensor gradient = taken_gradient(parameter);
    if (first) sum.gradient.reset();
    if (!gradient.defined()) return;
    if (only) {
      sum.gradient = gradient;
      return;
    }
    // Sums in float32 for half weights too: eight roundings to bfloat16 would lose what the split was to keep.
    if (sum.gradient.defined()) {
      kernels::accumulate_(sum.gradient, gradient);
      return;
    }
    if (!sum.accumulator.defined()) {
      sum.accumulator = at::empty(gradient.sizes(), gradient.options().dtype(kernels::wide_type(gradient)));
    }
    sum.gradient = sum.accumulator;
    precision::cast_into(sum.gradient, gradient, "update (sum of gradients)");
  }

  std::vector<Sum> sums_;
};

}  // namespace

std::unique_ptr<ParameterShares> make_whole(const std::vector<NamedParameter>& parameters) {
  return std::make_unique<WholeParameters>(parameters);
}

}  // namespace limbeck::parallel
