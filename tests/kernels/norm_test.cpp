#include "kernels/norm/norm.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "kernels/norm/norm_loops.h"
#include "support/device_dtype.h"
#include "support/operator_checks.h"

namespace limbeck::test {
namespace {

constexpr double kEps = 1e-6;

Operator rms(bool unit_offset, double eps = kEps) {
  return [=](const Tensors& in) { return kernels::rms_norm(in[0], in[1], eps, unit_offset); };
}

Operator rms_reference(bool unit_offset, double eps = kEps) {
  return [=](const Tensors& in) {
    const at::Tensor normalized = in[0] * at::rsqrt(in[0].square().mean(-1, true) + eps);
    return normalized * (unit_offset ? in[1] + 1.0 : in[1]);
  };
}

at::Tensor layer(const Tensors& in) {
  return kernels::layer_norm(in[0], in[1], in.size() > 2 ? std::optional(in[2]) : std::nullopt, kEps);
}

at::Tensor layer_reference(const Tensors& in) {
  return at::layer_norm(in[0], {in[0].size(-1)}, in[1], in.size() > 2 ? in[2] : at::Tensor(), kEps);
}

// Rows, widths around the 16 lanes and the 64-element unrolling, leading dimensions of all kinds.
const std::vector<std::vector<int64_t>> kShapes = {{1},      {16},       {1, 1},  {3, 15},      {2, 3, 17},
                                                   {5, 64},  {37, 131},  {1, 63}, {700, 79},    {4, 2, 1024},
                                                   {9, 257}, {2, 1, 80}, {0, 16}, {2, 0, 3, 7}, {66, 16}};

class NormTest : public OperatorTest {
 protected:
  Case rms_case(std::vector<int64_t> shape, bool unit_offset) const {
    return {rms(unit_offset),
            rms_reference(unit_offset),
            {random_tensor(shape, options(), 1), random_tensor({shape.back()}, options(), 2)},
            2};
  }
  Case layer_case(std::vector<int64_t> shape, bool with_bias) const {
    Case c{
        layer, layer_reference, {random_tensor(shape, options(), 1), random_tensor({shape.back()}, options(), 2)}, 2};
    if (with_bias) {
      c.inputs.push_back(random_tensor({shape.back()}, options(), 3));
      c.differentiable = 3;
    }
    return c;
  }
};

TEST_P(NormTest, RmsNormKeepsEveryPromiseForEveryShape) {
  for (const auto& shape : kShapes) {
    SCOPED_TRACE(::testing::PrintToString(shape));
    // One element and nearly no epsilon: the gradient is the difference of equal numbers, 0 up to their rounding.
    expect_every_promise(rms_case(shape, false), "rms_norm");
    expect_matches_reference(rms_case(shape, true));
  }
}

TEST_P(NormTest, LayerNormKeepsEveryPromiseForEveryShape) {
  for (const auto& shape : kShapes) {
    if (shape.back() == 1) continue;  // one element has no variance: see OneElementIsItsOwnMean
    SCOPED_TRACE(::testing::PrintToString(shape));
    expect_every_promise(layer_case(shape, true), "layer_norm");
    expect_matches_reference(layer_case(shape, false));
  }
}

TEST_P(NormTest, OneElementIsItsOwnMean) {
  const at::Tensor x = random_tensor({3, 1}, options(), 1), weight = random_tensor({1}, options(), 2);
  const at::Tensor bias = random_tensor({1}, options(), 3);
  expect_same_bits(kernels::layer_norm(x, weight, bias, kEps), bias.expand({3, 1}), "bias alone");
}

// Heads of queries and keys: rows that a warp holds, and the first widths that it does not; more rows than 1,024 blocks
// of 8 for the weights' gradient, and no multiple of what a block takes.
TEST_P(NormTest, NarrowRowsAgreeWithFloat64) {
  for (const int64_t width : {64, 65, 96, 127, 128, 129, 255, 256, 257}) {
    SCOPED_TRACE(width);
    expect_matches_reference(rms_case({13, 3, width}, false));
    expect_matches_reference(layer_case({9, width}, true));
  }
  expect_matches_reference(rms_case({8203, 64}, false));
  expect_matches_reference(layer_case({8203, 64}, true));
}

// One row more or fewer, elsewhere in memory: a row's bits are its own.
TEST_P(NormTest, ARowHasTheBitsItHasAlone) {
  for (const int64_t width : {64, 128, 200, 257}) {
    const at::Tensor padded = random_tensor({17, width + 3}, options(), 1), x = padded.narrow(1, 1, width);
    const at::Tensor weight = random_tensor({width}, options(), 2);
    const at::Tensor all = kernels::rms_norm(x, weight, kEps);
    for (const int64_t row : {0, 7, 8, 16}) {
      const at::Tensor one = kernels::rms_norm(x.narrow(0, row, 1).contiguous(), weight, kEps);
      expect_same_bits(one, all.narrow(0, row, 1), std::to_string(width) + ", row " + std::to_string(row));
    }
  }
}

TEST_P(NormTest, StridedInputsGiveTheResultsOfTheirCopies) {
  const at::Tensor wide = random_tensor({6, 10, 96}, options(), 1);
  const Tensors views = {wide.narrow(2, 7, 40),
                         wide.transpose(0, 1).narrow(2, 0, 33),
                         wide.transpose(1, 2),
                         wide.select(1, 3).narrow(1, 1, 30),
                         wide.narrow(1, 2, 1).expand({6, 4, 96}),
                         wide.as_strided({5, 4, 8}, {0, 960, 1})};
  for (const auto& x : views) {
    const at::Tensor weight = random_tensor({2 * x.size(-1)}, options(), 2).slice(0, 0, 2 * x.size(-1), 2);
    for (const Case& c : {Case{rms(false), rms_reference(false), {x, weight}, 2},
                          Case{layer, layer_reference, {x, weight, weight}, 3}}) {
      SCOPED_TRACE(::testing::PrintToString(x.strides().vec()));
      const Tensors strided = output_and_gradients(c.ours, c.inputs, c.differentiable);
      Tensors copies;
      for (const auto& t : c.inputs) copies.push_back(t.contiguous());
      const Tensors dense = output_and_gradients(c.ours, copies, c.differentiable);
      for (size_t i = 0; i < dense.size(); ++i) expect_same_bits(strided[i], dense[i], std::to_string(i));
      expect_meta_agrees(c);
    }
  }
}

TEST_P(NormTest, ExpandedGradientsAreTaken) {
  // What sum().backward() sends: stride 0 everywhere.
  const at::Tensor x = random_tensor({5, 40}, options(), 1).requires_grad_(true);
  const at::Tensor weight = random_tensor({40}, options(), 2).requires_grad_(true);
  const at::Tensor one = at::ones({}, options());
  const at::Tensor y = kernels::rms_norm(x, weight, kEps);
  const auto expanded = torch::autograd::grad({y}, {x, weight}, {one.expand({5, 40})}, true);
  const auto dense = torch::autograd::grad({y}, {x, weight}, {at::ones({5, 40}, options())});
  expect_same_bits(expanded[0], dense[0], "x");
  expect_same_bits(expanded[1], dense[1], "weight");
}

TEST_P(NormTest, ZeroRowsGiveZeroWeightGradients) {
  const Case c = layer_case({0, 24}, true);
  const Tensors results = output_and_gradients(c.ours, c.inputs, 3);
  EXPECT_EQ(results[0].numel(), 0);
  for (size_t i : {2u, 3u}) EXPECT_TRUE(at::equal(results[i], at::zeros({24}, options()))) << i;
}

TEST_P(NormTest, FrozenWeightsGetNoGradientAndChangeNoOther) {
  const at::Tensor x = random_tensor({11, 72}, options(), 1).requires_grad_(true);
  const at::Tensor weight = random_tensor({72}, options(), 2), grad = random_tensor({11, 72}, options(), 3);
  const auto alone = torch::autograd::grad({kernels::rms_norm(x, weight, kEps)}, {x}, {grad});
  const at::Tensor trained = weight.detach().clone().requires_grad_(true);
  const auto both = torch::autograd::grad({kernels::rms_norm(x, trained, kEps)}, {x, trained}, {grad});
  expect_same_bits(alone[0], both[0], "x");
  const auto of_weight = torch::autograd::grad({kernels::rms_norm(x.detach(), trained, kEps)}, {trained}, {grad});
  expect_same_bits(of_weight[0], both[1], "weight");
}

TEST_P(NormTest, SecondDerivativesAreRefused) {
  const at::Tensor x = random_tensor({2, 8}, options(), 1).requires_grad_(true);
  const at::Tensor weight = random_tensor({8}, options(), 2).requires_grad_(true);
  const auto first = torch::autograd::grad({kernels::rms_norm(x, weight, kEps).sum()}, {x}, {}, true, true);
  EXPECT_THROW(torch::autograd::grad({first[0].sum()}, {x}), c10::Error);
}

TEST_P(NormTest, WrongShapesAreRefused) {
  const at::Tensor x = random_tensor({2, 8}, options(), 1), weight = random_tensor({8}, options(), 2);
  EXPECT_THROW(kernels::rms_norm(x, weight.narrow(0, 0, 7), kEps), c10::Error);
  EXPECT_THROW(kernels::rms_norm(x, weight.view({1, 8}), kEps), c10::Error);
  EXPECT_THROW(kernels::rms_norm(x.narrow(1, 0, 0), weight.narrow(0, 0, 0), kEps), c10::Error);
  EXPECT_THROW(kernels::layer_norm(x, weight, weight.narrow(0, 0, 7), kEps), c10::Error);
  EXPECT_THROW(kernels::rms_norm(at::ones({2, 8}, at::kInt), at::ones({8}, at::kInt), kEps), c10::Error);
}

TEST_P(NormTest, LargeAndNonFiniteRowsStayInTheirRow) {
  at::Tensor x = random_tensor({3, 40}, options(), 1);
  x[1][3] = std::numeric_limits<double>::quiet_NaN();
  const at::Tensor weight = at::ones({40}, options());
  const at::Tensor y = kernels::rms_norm(x, weight, kEps);
  EXPECT_TRUE(y[1].isnan().all().item<bool>());
  EXPECT_FALSE(y[0].isnan().any().item<bool>());
  EXPECT_FALSE(y[2].isnan().any().item<bool>());
  // The mean of squares is float32 whatever the storage: 3e4^2 * 40 overflows float16, not this.
  const at::Tensor large = at::full({1, 40}, 3e4, options());
  expect_close(kernels::rms_norm(large, weight, kEps), at::ones({1, 40}), tolerance_of(GetParam().dtype), "large");
}

INSTANTIATE_TEST_SUITE_P(Operators, NormTest, every_device_and_dtype(), name_of);

TEST(NormMessages, NameWhatCameAndWhatWasWanted) {
  try {
    kernels::rms_norm(at::ones({2, 4}, at::kBFloat16), at::ones({4}), kEps);
    FAIL() << "mixed dtypes were taken";
  } catch (const c10::Error& error) {
    EXPECT_STREQ(error.what_without_backtrace(),
                 "[rms_norm] weight is float32 [4] on cpu, wanted bfloat16 as x (bfloat16 [2, 4] on cpu)");
  }
}

#if defined(__x86_64__)
TEST(CpuLoops, EveryInstructionSetGivesTheSameNorms) {
  using kernels::CpuIsa;
  std::vector<CpuIsa> isas = {CpuIsa::kBaseline};
  if (kernels::cpu_isa() != CpuIsa::kBaseline) isas.push_back(CpuIsa::kAvx2);
  if (kernels::cpu_isa() >= CpuIsa::kAvx512) isas.push_back(CpuIsa::kAvx512);
  if (isas.size() == 1) GTEST_SKIP() << "this machine has the baseline alone";
  const at::Tensor x = random_tensor({9, 203}, at::kFloat, 1), weight = random_tensor({203}, at::kFloat, 2);
  std::vector<Tensors> results;
  for (const CpuIsa isa : isas) {
    const auto& loops = kernels::norm_loops_for(isa);
    const at::Tensor y = at::empty_like(x), mean = at::empty({9}), rstd = at::empty({9}), grad_x = at::empty_like(x);
    const at::Tensor partial = at::empty({2, 203}), partial_bias = at::empty({2, 203});
    const kernels::NormForward forward{
        x.data_ptr(), 203,  weight.data_ptr(), weight.data_ptr(), y.data_ptr(), mean.data_ptr(), rstd.data_ptr(), 203,
        kEps,         false};
    loops.forward(kernels::Storage::kFloat32, forward, 0, 9);
    const kernels::NormBackward backward{y.data_ptr(),
                                         203,
                                         x.data_ptr(),
                                         203,
                                         weight.data_ptr(),
                                         mean.data_ptr(),
                                         rstd.data_ptr(),
                                         grad_x.data_ptr(),
                                         partial.data_ptr(),
                                         partial_bias.data_ptr(),
                                         203,
                                         false};
    loops.backward(kernels::Storage::kFloat32, backward, 0, 8, 0);
    loops.backward(kernels::Storage::kFloat32, backward, 8, 9, 1);
    results.push_back({y, mean, rstd, grad_x, partial, partial_bias});
  }
  for (size_t i = 1; i < results.size(); ++i) {
    for (size_t k = 0; k < results[i].size(); ++k) expect_same_bits(results[i][k], results[0][k], std::to_string(k));
  }
}
#endif

}  // namespace
}  // namespace limbeck::test
