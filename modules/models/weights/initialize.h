// Random first weights as transformers draws them: normal with config.json's initializer_range, biases and the padding
// row zero, norms neutral. A parameter's values depend on the seed and its path alone, so a deeper or differently split
// model starts from the same numbers wherever the paths agree.
#pragma once
#include <cstdint>
#include <string>

#include "modules/models/network/transformer.h"

namespace limbeck::models {

// Fills every parameter, in its storage dtype and on its device; the numbers are the same on every device.
void initialize_weights(const Transformer& model, uint64_t seed);
// Those of one module of it, as the whole model would have them.
void initialize_module(precision::ContractModule& module, const Transformer& model, uint64_t seed);
// One parameter, by a path of its own.
void fill_normal(const at::Tensor& parameter, uint64_t seed, const std::string& path, double deviation);

}  // namespace limbeck::models
