// Normal random numbers by counter: element i depends on (key, i) alone, not on threads, on the order of calls or on
// any generator's state.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>

namespace limbeck::kernels {

// One key from a seed and a name, so that every named tensor has numbers of its own.
uint64_t key_of(uint64_t seed, std::string_view name);

// Fills a contiguous CPU tensor with N(0, deviation^2), computed in float64 and rounded once to the tensor's dtype.
void fill_normal_(const at::Tensor& x, uint64_t key, double deviation);

}  // namespace limbeck::kernels
