#include "kernels/gated/gated_activation.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "support/device_dtype.h"
#include "support/operator_checks.h"

namespace limbeck::test {
namespace {

at::Tensor swiglu(const Tensors& in) { return kernels::swiglu(in[0], in[1]); }
at::Tensor swiglu_reference(const Tensors& in) { return at::silu(in[0]) * in[1]; }
at::Tensor geglu(const Tensors& in) { return kernels::geglu_tanh(in[0], in[1]); }
at::Tensor geglu_reference(const Tensors& in) { return at::gelu(in[0], "tanh") * in[1]; }

class GatedActivationTest : public OperatorTest {
 protected:
  Tensors pair(at::IntArrayRef shape) const {
    return {random_tensor(shape, options(), 1) * 3, random_tensor(shape, options(), 2)};
  }
};

TEST_P(GatedActivationTest, KeepsEveryPromiseForEveryShape) {
  const std::vector<std::vector<int64_t>> shapes = {{1},    {17},   {3, 16}, {2, 3, 63}, {0, 8},
                                                    {5, 0}, {1, 1}, {9, 80}, {300, 131}, {2, 2, 2, 5}};
  for (const auto& shape : shapes) {
    SCOPED_TRACE(::testing::PrintToString(shape));
    expect_every_promise({swiglu, swiglu_reference, pair(shape), 2}, "swiglu");
    expect_every_promise({geglu, geglu_reference, pair(shape), 2}, "geglu_tanh");
  }
}

TEST_P(GatedActivationTest, HalvesOfOneFusedProjectionNeedNoCopy) {
  for (const int64_t width : {96, 97}) {  // of the odd one rows begin anywhere
    const at::Tensor fused = random_tensor({4, 6, 2 * width}, options(), 1);
    const Tensors halves = {fused.narrow(2, 0, width), fused.narrow(2, width, width)};
    for (const auto& [ours, reference] : {std::pair{&swiglu, &swiglu_reference}, std::pair{&geglu, &geglu_reference}}) {
      const Case c{ours, reference, halves, 2};
      expect_matches_reference(c);
      const Tensors strided = output_and_gradients(ours, halves, 2);
      const Tensors dense = output_and_gradients(ours, {halves[0].contiguous(), halves[1].contiguous()}, 2);
      for (size_t i = 0; i < dense.size(); ++i) expect_same_bits(strided[i], dense[i], std::to_string(i));
      expect_meta_agrees(c);
    }
  }
}

TEST_P(GatedActivationTest, TransposedInputsAreTaken) {
  expect_matches_reference(
      {swiglu, swiglu_reference, {random_tensor({40, 6}, options(), 1).t(), random_tensor({6, 40}, options(), 2)}, 2});
}

// Gates far outside the normal range: the sigmoid is 0 or 1 there and nothing overflows on the way.
TEST_P(GatedActivationTest, HugeGatesGiveZeroOrTheIdentity) {
  const double huge = GetParam().dtype == at::kHalf ? 6e4 : 1e30;
  const at::Tensor gate = at::tensor({-huge, -1e3, 1e3, huge}, at::kDouble).to(options()).requires_grad_(true);
  const at::Tensor up = at::ones({4}, options()).requires_grad_(true);
  for (const auto op : {&swiglu, &geglu}) {
    const at::Tensor y = op({gate, up});
    EXPECT_TRUE(at::equal(y.detach(), gate.detach().clamp_min(0))) << y;
    const auto gradients = torch::autograd::grad({y}, {gate, up}, {at::ones({4}, options())});
    EXPECT_TRUE(at::equal(gradients[0], at::tensor({0, 0, 1, 1}, at::kDouble).to(options()))) << gradients[0];
    EXPECT_TRUE(at::equal(gradients[1], gate.detach().clamp_min(0))) << gradients[1];
  }
}

TEST_P(GatedActivationTest, NanReachesOutputAndGradients) {
  const at::Tensor gate = at::full({20}, std::nan(""), options()).requires_grad_(true);
  const at::Tensor up = at::ones({20}, options()).requires_grad_(true);
  for (const auto op : {&swiglu, &geglu}) {
    const at::Tensor y = op({gate, up});
    EXPECT_TRUE(y.isnan().all().item<bool>());
    for (const auto& g : torch::autograd::grad({y}, {gate, up}, {at::ones({20}, options())})) {
      EXPECT_TRUE(g.isnan().all().item<bool>());
    }
  }
}

TEST_P(GatedActivationTest, WrongShapesAreRefused) {
  EXPECT_THROW(kernels::swiglu(at::ones({2, 4}, options()), at::ones({4, 2}, options())), c10::Error);
  EXPECT_THROW(kernels::swiglu(at::ones({2, 4}, options()), at::ones({4}, options())), c10::Error);
  EXPECT_THROW(kernels::geglu_tanh(at::ones({}, options()), at::ones({}, options())), c10::Error);
}

INSTANTIATE_TEST_SUITE_P(Operators, GatedActivationTest, every_device_and_dtype(), name_of);

// float32 is where the polynomial of the exponential shows: every gate over the range, not a sample of normal values.
TEST(GatedActivation, SigmoidIsAccurateOverTheWholeRange) {
  const at::Tensor gate = at::linspace(-86.0, 86.0, 1 << 20, at::kDouble).to(at::kFloat);
  const at::Tensor ours = kernels::swiglu(gate, at::ones_like(gate)).to(at::kDouble);
  const at::Tensor exact = at::silu(gate.to(at::kDouble));
  // 2.5 units in the last place: exp 1.5, reciprocal 0.5, products 0.5.
  EXPECT_LT(((ours - exact) / exact).abs().nan_to_num(0.0).max().item<double>(), 2.5 * 0x1p-23);
}

}  // namespace
}  // namespace limbeck::test
