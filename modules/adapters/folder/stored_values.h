// A parameter of an adapter filled from its file, whatever the kind of adapter.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

namespace limbeck::adapters {

// `stored` into `target`, in the target's dtype. WeightsError names file and tensor where a value is not finite there.
void take_stored(at::Tensor target, const at::Tensor& stored, const std::string& file, const std::string& name);

}  // namespace limbeck::adapters
