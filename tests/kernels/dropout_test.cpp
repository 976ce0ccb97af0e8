#include "kernels/dropout/dropout.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "kernels/linear/linear.h"
#include "kernels/random/normal_values.h"
#include "support/device_dtype.h"
#include "support/operator_checks.h"

namespace limbeck::test {
namespace {

using kernels::DropoutMask;

const uint64_t kKey = kernels::key_of(3, "student.layers.0.q_proj");

at::Tensor tokens_of(int64_t rows) { return at::arange(100, 100 + rows, at::kLong); }

// The formula by hand, one element after another: 0 or 1 / (1 - rate), in float64.
at::Tensor factors(int64_t rows, int64_t width, double rate) {
  const auto mixed = [](uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  };
  const uint64_t golden = 0x9e3779b97f4a7c15;
  at::Tensor found = at::zeros({rows, width}, at::kDouble);
  for (int64_t row = 0; row < rows; ++row) {
    const uint64_t key = mixed(kKey + static_cast<uint64_t>(100 + row) * golden);
    for (int64_t j = 0; j < width; ++j) {
      const uint64_t pair = mixed(key + static_cast<uint64_t>(j / 2) * golden);
      const double share = static_cast<double>(j % 2 == 0 ? pair & 0xffffffff : pair >> 32) / 4294967296.0;
      if (share >= rate) found[row][j] = 1.0 / (1.0 - rate);
    }
  }
  return found;
}

class DropoutTest : public OperatorTest {};

TEST_P(DropoutTest, KeepsEveryPromiseForEveryShape) {
  const std::vector<std::vector<int64_t>> shapes = {{1},    {17},   {3, 16},  {2, 3, 63}, {0, 8},
                                                    {5, 0}, {1, 1}, {4, 129}, {40, 131},  {2, 2, 2, 5}};
  for (const auto& shape : shapes) {
    SCOPED_TRACE(::testing::PrintToString(shape));
    const int64_t width = shape.back();
    int64_t rows = 1;
    for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
    const Operator ours = [](const Tensors& in) { return kernels::dropout(in[0], {in[1], kKey, 0.3}); };
    const Operator wanted = [&](const Tensors& in) { return in[0] * factors(rows, width, 0.3).view(in[0].sizes()); };
    const Case c{ours, wanted, {random_tensor(shape, options(), 1), tokens_of(rows).to(options().device())}, 1};
    expect_matches_reference(c);
    expect_inference_equals_training(c);
    expect_threads_do_not_matter(c);
    expect_meta_agrees(c);
  }
}

TEST_P(DropoutTest, AProductOfWhatIsLeftHasTheGradientsOfItsParts) {
  for (const auto& shape : std::vector<std::vector<int64_t>>{{7, 40}, {2, 3, 65}, {1, 1}}) {
    SCOPED_TRACE(::testing::PrintToString(shape));
    const int64_t width = shape.back();
    int64_t rows = 1;
    for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
    const at::Tensor tokens = tokens_of(rows).to(options().device());
    const Operator ours = [&](const Tensors& in) {
      const at::Tensor where = in[0].is_meta() ? tokens.to(at::kMeta) : tokens;
      return kernels::dropped_linear(in[0], in[1], {where, kKey, 0.3});
    };
    const Operator wanted = [&](const Tensors& in) {
      return at::linear(in[0] * factors(rows, width, 0.3).view(in[0].sizes()), in[1]);
    };
    const Case c{ours, wanted, {random_tensor(shape, options(), 1), random_tensor({5, width}, options(), 2)}, 2};
    // Half types round what is left before the product: held to the bits of the two steps, each with its own reference.
    if (options().dtype() == at::kFloat || options().dtype() == at::kDouble) expect_matches_reference(c);
    expect_inference_equals_training(c);
    expect_meta_agrees(c);
    // In two steps, of which the first leaves a tensor behind: the same bits.
    const Tensors once = output_and_gradients(ours, c.inputs, 2);
    const Tensors twice = output_and_gradients(
        [&](const Tensors& in) {
          return kernels::linear(kernels::dropout(in[0], {tokens, kKey, 0.3}), in[1]);
        },
        c.inputs, 2);
    for (size_t i = 0; i < once.size(); ++i) expect_same_bits(once[i], twice[i], std::to_string(i));
  }
}

TEST_P(DropoutTest, StridedRowsAreReadInPlace) {
  const at::Tensor whole = random_tensor({6, 2 * 48}, options(), 1);
  const DropoutMask mask{tokens_of(6).to(options().device()), kKey, 0.5};
  const at::Tensor half = whole.narrow(1, 48, 48);
  expect_same_bits(kernels::dropout(half, mask), kernels::dropout(half.contiguous(), mask), "half");
}

TEST_P(DropoutTest, AMaskBelongsToItsTokenWhereverItStands) {
  const at::Tensor x = at::ones({8, 70}, options()), tokens = tokens_of(8).to(options().device());
  const at::Tensor all = kernels::dropout(x, {tokens, kKey, 0.4});
  const at::Tensor some = at::tensor({5, 0, 3}, at::kLong).to(options().device());
  const at::Tensor moved = kernels::dropout(x.narrow(0, 0, 3), {tokens.index_select(0, some), kKey, 0.4});
  expect_same_bits(moved, all.index_select(0, some), "moved rows");
}

TEST_P(DropoutTest, WrongArgumentsAreRefused) {
  const at::Tensor x = at::ones({4, 8}, options()), tokens = tokens_of(4).to(options().device());
  EXPECT_THROW(kernels::dropout(x, {tokens.narrow(0, 0, 3), kKey, 0.1}), c10::Error);
  EXPECT_THROW(kernels::dropout(x, {tokens.to(at::kInt), kKey, 0.1}), c10::Error);
  EXPECT_THROW(kernels::dropout(x, {tokens.to(at::kMeta), kKey, 0.1}), c10::Error);
  EXPECT_THROW(kernels::dropout(at::ones({4, 8}, at::kLong), {tokens, kKey, 0.1}), c10::Error);
  EXPECT_THROW(kernels::dropout(x, {tokens.view({2, 2}), kKey, 0.1}), c10::Error);
  EXPECT_THROW(kernels::dropout(at::ones({}, options()), {tokens, kKey, 0.1}), c10::Error);
  for (const double rate : {1.0, -0.1, std::nan("")}) {
    EXPECT_THROW(kernels::dropout(x, {tokens, kKey, rate}), c10::Error) << rate;
  }
}

INSTANTIATE_TEST_SUITE_P(Operators, DropoutTest, every_device_and_dtype(), name_of);

at::Tensor kept(int64_t rows, int64_t width, uint64_t key, double rate) {
  return kernels::dropout(at::ones({rows, width}), {tokens_of(rows), key, rate}).ne(0).to(at::kDouble);
}

// Bars at five standard deviations of the binomial distribution.
TEST(Dropout, ItsRateIsThatOfIndependentDraws) {
  const int64_t rows = 512, width = 1024, count = rows * width;
  for (const double rate : {0.0, 0.01, 0.05, 0.1, 0.5, 0.9, 0.999}) {
    const double bar = 5 * std::sqrt(rate * (1 - rate));
    const at::Tensor mask = kept(rows, width, kKey, rate);
    EXPECT_NEAR(mask.mean().item<double>(), 1 - rate, bar / std::sqrt(count)) << rate;
    // Neither a row nor a column has its own rate; the bar allows for a thousand of them.
    EXPECT_LE((mask.mean(1) - (1 - rate)).abs().max().item<double>(), 1.2 * bar / std::sqrt(width) + 5.0 / width)
        << rate;
    EXPECT_LE((mask.mean(0) - (1 - rate)).abs().max().item<double>(), 1.2 * bar / std::sqrt(rows) + 5.0 / rows) << rate;
  }
}

TEST(Dropout, WhatIsKeptIsScaledByOneOverTheShareKept) {
  for (const double rate : {0.05, 0.1, 0.5, 0.75}) {
    const at::Tensor y = kernels::dropout(at::ones({16, 100}, at::kDouble), {tokens_of(16), kKey, rate});
    const at::Tensor others = y.masked_select(y.ne(0));
    EXPECT_TRUE(others.eq(1.0 / (1.0 - rate)).all().item<bool>()) << rate;
  }
  const at::Tensor x = random_tensor({4, 9}, at::TensorOptions().dtype(at::kFloat), 1);
  expect_same_bits(kernels::dropout(x, {tokens_of(4), kKey, 0.0}), x, "rate 0");
}

TEST(Dropout, KeysTokensAndNeighboursAreIndependent) {
  const int64_t rows = 256, width = 1024;
  const double rate = 0.3, bar = 5 * rate * (1 - rate) / std::sqrt(rows * width);
  const at::Tensor mask = kept(rows, width, kKey, rate) - (1 - rate);
  const auto expect_independent = [&](const at::Tensor& a, const at::Tensor& b, const std::string& what) {
    EXPECT_NEAR((a * b).mean().item<double>(), 0.0, 1.01 * bar) << what;
  };
  EXPECT_TRUE(mask.equal(kept(rows, width, kKey, rate) - (1 - rate)));
  for (const uint64_t other :
       {kernels::key_of(4, "student.layers.0.q_proj"), kernels::key_of(3, "student.layers.1.q_proj"),
        kernels::key_of(3, "student.layers.0.v_proj"), kKey + 1}) {
    expect_independent(mask, kept(rows, width, other, rate) - (1 - rate), "key " + std::to_string(other));
  }
  expect_independent(mask.narrow(1, 1, width - 1), mask.narrow(1, 0, width - 1), "neighbours in a row");
  expect_independent(mask.narrow(1, 2, width - 2), mask.narrow(1, 0, width - 2), "neighbouring pairs");
  expect_independent(mask.narrow(0, 1, rows - 1), mask.narrow(0, 0, rows - 1), "neighbouring tokens");
}

// Central differences in float64: of the operator and of its product, and of their gradients again.
TEST(Dropout, NumericalDerivativesAgree) {
  const auto wide = at::TensorOptions().dtype(at::kDouble);
  const DropoutMask mask{tokens_of(6), kKey, 0.4};
  const at::Tensor some_x = random_tensor({6, 5}, wide, 1).requires_grad_(true),
                   some_w = random_tensor({3, 5}, wide, 2).requires_grad_(true);
  const auto loss = [&](const at::Tensor& x, const at::Tensor& w) {
    return (kernels::dropped_linear(x, w, mask).sin().sum() + kernels::dropout(x, mask).pow(3).sum());
  };
  const auto slope = [&](const at::Tensor& x, const at::Tensor& w) {  // of the loss, and its own slope
    const auto first = torch::autograd::grad({loss(x, w)}, {x, w}, {}, true, /*create_graph=*/true);
    return first[0].square().sum() + first[1].square().sum();
  };
  const auto expect_slopes = [](const auto& f, const at::Tensor& x, const at::Tensor& w) {
    const auto gradients = torch::autograd::grad({f(x, w)}, {x, w});
    for (size_t which = 0; which < 2; ++which) {
      const at::Tensor gradient = gradients[which].flatten();
      for (int64_t i = 0; i < (which == 0 ? x : w).numel(); ++i) {
        const auto moved = [&](double by) {
          const at::Tensor a = x.detach().clone(), b = w.detach().clone();
          (which == 0 ? a : b).view({-1}).narrow(0, i, 1).add_(by);
          const at::Tensor value = f(a.requires_grad_(true), b.requires_grad_(true));
          return value.item<double>();
        };
        const double wanted = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        EXPECT_NEAR(gradient[i].item<double>(), wanted, 1e-6 * std::max(1.0, std::abs(wanted)));
      }
    }
  };
  expect_slopes(loss, some_x, some_w);
  expect_slopes(slope, some_x, some_w);
}

}  // namespace
}  // namespace limbeck::test
