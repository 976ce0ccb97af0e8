// adapter.kind = row_gain: y = (W x) (1 + s g), one g for each output of a linear module; s = adapter.scale.
#include <ATen/core/grad_mode.h>

#include "modules/models/network/parameter_modules.h"
#include "own_kinds.h"

namespace own {
namespace {

using namespace limbeck;

class RowGain : public models::LinearAdapter {
 public:
  RowGain(const precision::Scope& scope, const adapters::AddedSizes& sizes, const models::Linear& host)
      : LinearAdapter(scope, host.precision()), scale_(sizes.scale) {
    create_parameter("gain", {host.out_features()});
  }

  void initialize(const models::Linear&, uint64_t) override { parameter("gain").detach().zero_(); }

  at::Tensor forward(const at::Tensor& x, const models::Linear& host, const models::Draws&) const override {
    const precision::ModuleScope scope(path());
    return leave(enter(host.base_forward(x)) * (parameter("gain") * scale_ + 1));
  }

  models::ProductOperands operands(const at::Tensor& x, const models::Linear& host, bool learns,
                                   const models::Draws&) const override {
    const precision::ModuleScope scope(path());
    const at::Tensor gain = learns ? parameter("gain") : parameter("gain").detach();
    const at::Tensor factor =
        precision::cast(gain * scale_ + 1, precision().storage, host.weight().scalar_type(), path() + " (factor)");
    return {x, host.weight() * factor.unsqueeze(1)};
  }

  models::MergedWeight merged(const models::Linear& host) const override {
    const at::NoGradGuard no_gradient;
    const at::Tensor factor = widened(parameter("gain")) * scale_ + 1;
    models::MergedWeight merged{widened(host.weight_rows(0, host.out_features())) * factor.unsqueeze(1), host.bias()};
    if (merged.bias) merged.bias = widened(*merged.bias) * factor;
    return merged;
  }

  models::UnmergedWeight unmerged(const models::Linear& host) const override {
    const at::NoGradGuard no_gradient;
    const at::Tensor factor = widened(parameter("gain")) * scale_ + 1;
    models::UnmergedWeight before{widened(host.weight()) / factor.unsqueeze(1), host.bias(),
                                  factor.abs().reciprocal().unsqueeze(1)};
    if (before.bias) before.bias = widened(*before.bias) / factor;
    return before;
  }

 private:
  double scale_;
};

}  // namespace

adapters::AddedKind row_gain() {
  return {.name = "row_gain",
          .summary = "a gain for each output of a linear module",
          .on_linear = [](const precision::Scope& scope, const adapters::AddedSizes& sizes,
                          const models::Linear& host) { return std::make_shared<RowGain>(scope, sizes, host); }};
}

}  // namespace own
