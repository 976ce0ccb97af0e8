// What every backend of the rotary embedding shares: argument checks, the output tensor (the Meta kernel is exactly
// that) and the description of the work for the loops.
#pragma once
#include <ATen/core/Tensor.h>

#include <tuple>

#include "kernels/rotary/rotary_loops.h"

namespace limbeck::kernels {

// `op` names the caller in messages: x is the gradient for the backward.
at::Tensor rotary_output(const char* op, const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

// Of queries and keys, which agree in all but their number of heads.
std::tuple<at::Tensor, at::Tensor> rotary_outputs(const char* op, const at::Tensor& q, const at::Tensor& k,
                                                  const at::Tensor& cos, const at::Tensor& sin);

// Holds what the pointers of `arguments` point to.
struct RotaryWork {
  RotaryWork(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& y, bool inverse);

  at::Tensor x, cos, sin;
  RotaryArguments arguments;
  int64_t positions;
  Storage storage;
};

}  // namespace limbeck::kernels
