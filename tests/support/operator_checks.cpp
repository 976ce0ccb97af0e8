#include "support/operator_checks.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cstring>

namespace limbeck::test {
namespace {

Tensors leaves(const Tensors& inputs, size_t differentiable) {
  Tensors out;
  for (size_t i = 0; i < inputs.size(); ++i) {
    // A view, so that strides stay; detached, so that it is a leaf.
    out.push_back(inputs[i].defined() ? inputs[i].detach() : at::Tensor());
    if (i < differentiable) out.back().requires_grad_(true);
  }
  return out;
}

at::Tensor gradient_for(const at::Tensor& output) {
  return random_tensor(output.sizes(), output.options().device(at::kCPU), 99).to(output.device());
}

Tensors mapped(const Tensors& inputs, const std::function<at::Tensor(const at::Tensor&)>& f) {
  Tensors out;
  for (const auto& t : inputs) out.push_back(t.defined() ? f(t) : t);
  return out;
}

at::Tensor to_meta(const at::Tensor& t) {
  return at::empty_strided(t.sizes(), t.strides(), t.options().device(at::kMeta));
}

std::string refusal(const Operator& op, const Tensors& inputs) {
  try {
    op(inputs);
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "";
}

}  // namespace

at::Tensor random_tensor(at::IntArrayRef shape, const at::TensorOptions& options, uint64_t seed) {
  auto generator = at::detail::createCPUGenerator(seed);
  return at::randn(shape, generator, at::TensorOptions().dtype(at::kDouble)).to(options);
}

void expect_close(const at::Tensor& ours, const at::Tensor& wanted, Tolerance tolerance, const std::string& what) {
  ASSERT_EQ(ours.sizes(), wanted.sizes()) << what;
  if (wanted.numel() == 0) return;
  const at::Tensor got = ours.detach().to(at::kCPU, at::kDouble), want = wanted.detach().to(at::kCPU, at::kDouble);
  const double scale = std::max(1.0, want.abs().max().item<double>());
  const at::Tensor excess = (got - want).abs() - tolerance.relative * want.abs() - tolerance.absolute * scale;
  // Not "> 0": a NaN must fail.
  EXPECT_TRUE(excess.max().item<double>() <= 0.0)
      << what << ": largest difference " << (got - want).abs().max().item<double>() << ", "
      << excess.max().item<double>() << " more than the tolerance for " << ours.dtype();
}

void expect_same_bits(const at::Tensor& a, const at::Tensor& b, const std::string& what) {
  ASSERT_EQ(a.scalar_type(), b.scalar_type()) << what;
  ASSERT_EQ(a.sizes(), b.sizes()) << what;
  const at::Tensor left = a.detach().to(at::kCPU).contiguous(), right = b.detach().to(at::kCPU).contiguous();
  EXPECT_TRUE(left.nbytes() == 0 || std::memcmp(left.const_data_ptr(), right.const_data_ptr(), left.nbytes()) == 0)
      << what;
}

Tensors output_and_gradients(const Operator& op, const Tensors& inputs, size_t differentiable) {
  const Tensors in = leaves(inputs, differentiable);
  const at::Tensor output = op(in);
  Tensors results{output.detach()};
  const Tensors wanted(in.begin(), in.begin() + static_cast<std::ptrdiff_t>(differentiable));
  const at::Tensor grad = output.is_meta() ? at::empty(output.sizes(), output.options()) : gradient_for(output);
  for (auto& g : torch::autograd::grad({output}, wanted, {grad})) results.push_back(g);
  return results;
}

void expect_matches_reference(const Case& c) {
  const Tensors ours = output_and_gradients(c.ours, c.inputs, c.differentiable);
  const Tensors exact = mapped(c.inputs, [](const at::Tensor& t) { return t.to(at::kCPU, at::kDouble); });
  const Tensors in = leaves(exact, c.differentiable);
  const at::Tensor output = c.reference(in);
  const Tensors wanted(in.begin(), in.begin() + static_cast<std::ptrdiff_t>(c.differentiable));
  // The same gradient, which was rounded to the dtype under test.
  const at::Tensor grad = gradient_for(ours[0]).to(at::kCPU, at::kDouble);
  const auto gradients = torch::autograd::grad({output}, wanted, {grad});
  const Tolerance tolerance = tolerance_of(ours[0].scalar_type());
  expect_close(ours[0], output, tolerance, "output");
  for (size_t i = 0; i < gradients.size(); ++i) {
    ASSERT_EQ(ours[i + 1].scalar_type(), c.inputs[i].scalar_type());
    expect_close(ours[i + 1], gradients[i], tolerance, "gradient of input " + std::to_string(i));
  }
}

void expect_inference_equals_training(const Case& c) {
  const at::Tensor training = c.ours(leaves(c.inputs, c.differentiable));
  ASSERT_TRUE(training.requires_grad());
  {
    const at::NoGradGuard no_grad;
    expect_same_bits(training, c.ours(c.inputs), "without recording");
  }
  const c10::InferenceMode inference;
  expect_same_bits(training, c.ours(c.inputs), "inference mode");
}

void expect_threads_do_not_matter(const Case& c) {
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const Tensors one = output_and_gradients(c.ours, c.inputs, c.differentiable);
  at::set_num_threads(2);
  const Tensors two = output_and_gradients(c.ours, c.inputs, c.differentiable);
  at::set_num_threads(threads);
  for (size_t i = 0; i < one.size(); ++i) expect_same_bits(one[i], two[i], "result " + std::to_string(i));
}

void expect_meta_agrees(const Case& c) {
  const Tensors real = output_and_gradients(c.ours, c.inputs, c.differentiable);
  const Tensors meta = output_and_gradients(c.ours, mapped(c.inputs, to_meta), c.differentiable);
  ASSERT_EQ(real.size(), meta.size());
  for (size_t i = 0; i < real.size(); ++i) {
    EXPECT_TRUE(meta[i].is_meta());
    EXPECT_EQ(real[i].sizes(), meta[i].sizes()) << i;
    EXPECT_EQ(real[i].strides(), meta[i].strides()) << i;
    EXPECT_EQ(real[i].scalar_type(), meta[i].scalar_type()) << i;
  }
}

void expect_mixing_refused(const Case& c, const std::string& op) {
  for (size_t i = 0; i < c.inputs.size(); ++i) {
    if (!c.inputs[i].defined()) continue;
    Tensors mixed = c.inputs;
    mixed[i] = c.inputs[i].to(c.inputs[i].scalar_type() == at::kBFloat16 ? at::kHalf : at::kBFloat16);
    const std::string dtype_message = refusal(c.ours, mixed);
    EXPECT_NE(dtype_message.find("[" + op + "]"), std::string::npos) << "input " << i << ": " << dtype_message;
    EXPECT_NE(dtype_message.find("wanted"), std::string::npos) << dtype_message;
    mixed[i] = to_meta(c.inputs[i]);
    EXPECT_FALSE(refusal(c.ours, mixed).empty()) << "input " << i << " on meta was taken";
  }
}

void expect_every_promise(const Case& c, const std::string& op) {
  expect_matches_reference(c);
  expect_inference_equals_training(c);
  expect_threads_do_not_matter(c);
  expect_meta_agrees(c);
  expect_mixing_refused(c, op);
}

}  // namespace limbeck::test
