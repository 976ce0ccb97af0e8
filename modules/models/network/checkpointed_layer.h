// A layer that keeps nothing but its input for backward and is run again there (activation checkpointing). The second
// run is the first one's operators on the same bits, so the gradients are those of the plain layer bit for bit.
#pragma once
#include <memory>

#include "modules/models/network/blocks.h"

namespace limbeck::models {

// layer->forward(x, input); plain where no gradient is recorded or a cache takes part. One backward: a second, or one
// that is to be differentiated itself, throws.
at::Tensor checkpointed_forward(const std::shared_ptr<Layer>& layer, const at::Tensor& x, const LayerInput& input);

}  // namespace limbeck::models
