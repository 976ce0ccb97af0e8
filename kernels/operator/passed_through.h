// What stands in the place of a tensor and passes its gradient on as it comes: straight-through estimation of steps,
// which have no slope of their own.
#pragma once
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include <functional>

namespace limbeck::kernels {

class PassedThrough : public torch::autograd::Function<PassedThrough> {
 public:
  using Step = std::function<at::Tensor(const at::Tensor&)>;

  // step(x), computed below autograd.
  static at::Tensor forward(torch::autograd::AutogradContext*, const at::Tensor& x, const Step& step) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    return step(x);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list gradients) {
    return {gradients[0], {}};
  }
};

}  // namespace limbeck::kernels
