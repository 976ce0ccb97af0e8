// What every operator promises, checked on any operator given as a function of its tensors.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "support/tolerance.h"

namespace limbeck::test {

using Tensors = std::vector<at::Tensor>;
using Operator = std::function<at::Tensor(const Tensors&)>;

// The first `differentiable` inputs get gradients; the rest are constants.
struct Case {
  Operator ours;
  Operator reference;  // of float64 inputs
  Tensors inputs;
  size_t differentiable;
};

// Standard normal values of the given options, from a fixed seed.
at::Tensor random_tensor(at::IntArrayRef shape, const at::TensorOptions& options, uint64_t seed);

void expect_close(const at::Tensor& ours, const at::Tensor& wanted, Tolerance tolerance, const std::string& what);
void expect_same_bits(const at::Tensor& a, const at::Tensor& b, const std::string& what);

// The output and all gradients, for a random gradient of the output.
Tensors output_and_gradients(const Operator& op, const Tensors& inputs, size_t differentiable);

void expect_matches_reference(const Case& c);
// Training forward, forward without recording and forward in inference mode.
void expect_inference_equals_training(const Case& c);
// On 1 and 2 threads.
void expect_threads_do_not_matter(const Case& c);
// Shapes, strides and dtypes of output and gradients.
void expect_meta_agrees(const Case& c);
// Every input in turn in another dtype and on another device: refused, naming `op`.
void expect_mixing_refused(const Case& c, const std::string& op);

void expect_every_promise(const Case& c, const std::string& op);

}  // namespace limbeck::test
