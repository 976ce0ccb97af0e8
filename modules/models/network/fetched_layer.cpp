#include "modules/models/network/fetched_layer.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

namespace limbeck::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Call = void (WeightKeeper::*)(int64_t);

// The identity, with a call in backward: on a layer's result before the layer's backward, on its input after it.
template <Call call>
struct InBackward : torch::autograd::Function<InBackward<call>> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, WeightKeeper* keeper, int64_t layer) {
    context->saved_data["keeper"] = reinterpret_cast<int64_t>(keeper);
    context->saved_data["layer"] = layer;
    return x;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    auto* keeper = reinterpret_cast<WeightKeeper*>(context->saved_data["keeper"].toInt());
    (keeper->*call)(context->saved_data["layer"].toInt());
    return {gradients[0], at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor kept_forward(WeightKeeper& keeper, int64_t layer, const at::Tensor& x,
                        const std::function<at::Tensor(const at::Tensor&)>& forward) {
  keeper.before_forward(layer);
  at::Tensor y;
  if (at::GradMode::is_enabled() && keeper.follows_backward()) {
    y = forward(InBackward<&WeightKeeper::after_backward>::apply(x, &keeper, layer));
    y = InBackward<&WeightKeeper::before_backward>::apply(y, &keeper, layer);
  } else {
    y = forward(x);
  }
  keeper.after_forward(layer);
  return y;
}

}  // namespace limbeck::models
