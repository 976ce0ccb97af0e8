// adapter.kind = bottleneck: a small MLP behind a whole layer, h' = layer(h) + s up relu(down h). No weight does that,
// so it cannot be merged.
#include <ATen/ops/relu.h>

#include <cmath>

#include "kernels/linear/linear.h"
#include "modules/models/network/blocks.h"
#include "modules/models/weights/initialize.h"
#include "own_kinds.h"

namespace own {
namespace {

using namespace limbeck;

class Bottleneck : public models::LayerAdapter {
 public:
  Bottleneck(const precision::Scope& scope, const adapters::AddedSizes& sizes, int64_t width)
      : LayerAdapter(scope), width_(width), scale_(sizes.scale) {
    create_parameter("down", {sizes.rank, width});
    create_parameter("up", {width, sizes.rank});
  }

  void initialize(const models::Layer&, uint64_t seed) override {
    models::fill_normal(parameter("down"), seed, path() + ".down", 1 / std::sqrt(static_cast<double>(width_)));
    parameter("up").detach().zero_();
  }

  at::Tensor forward(const at::Tensor& h, const models::Layer& host, const models::LayerInput& input) const override {
    const at::Tensor base = host.base_forward(h, input);
    const precision::ModuleScope scope(path());
    const at::Tensor low = at::relu(kernels::linear(enter(h), parameter("down")));
    return base + leave(kernels::linear(low, parameter("up")) * scale_);
  }

  std::string kind_name() const override { return "bottleneck"; }

 private:
  int64_t width_;
  double scale_;
};

}  // namespace

adapters::AddedKind bottleneck() {
  return {.name = "bottleneck",
          .summary = "a small MLP behind a whole layer",
          .on_layer = [](const precision::Scope& scope, const adapters::AddedSizes& sizes, const models::Layer& host) {
            return std::make_shared<Bottleneck>(scope, sizes, host.width());
          }};
}

}  // namespace own
