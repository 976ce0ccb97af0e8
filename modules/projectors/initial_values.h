// First values of projectors. Each parameter draws from a generator of its own, seeded by the run's seed and the
// parameter's path: another projector in the recipe changes no value of this one, and neither does its dtype.
#pragma once
#include <torch/nn/module.h>

#include <cstdint>

namespace limbeck::projectors {

// Matrices: normal with this standard deviation; norms: one and zero; biases: zero. Modules that know better (attention
// projectors) reset themselves. Parameters on meta stay as they are.
void fill_initial_values(torch::nn::Module& root, double standard_deviation, int64_t seed);

}  // namespace limbeck::projectors
