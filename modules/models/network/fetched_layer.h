// One layer between the calls of a WeightKeeper, in forward and in backward.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>

#include "modules/models/network/weight_keeper.h"

namespace limbeck::models {

// forward(x), bit for bit, with the weights of the layer fetched before and freed after, both ways.
at::Tensor kept_forward(WeightKeeper& keeper, int64_t layer, const at::Tensor& x,
                        const std::function<at::Tensor(const at::Tensor&)>& forward);

}  // namespace limbeck::models
