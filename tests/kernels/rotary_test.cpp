#include "kernels/rotary/rotary.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstring>

#include "kernels/rotary/rotary_loops.h"
#include "support/device_dtype.h"
#include "support/operator_checks.h"

namespace limbeck::test {
namespace {

at::Tensor rotary(const Tensors& in) { return kernels::rotary_embedding(in[0], in[1], in[2]); }

at::Tensor rotary_reference(const Tensors& in) {
  const int64_t half = in[1].size(-1);
  const at::Tensor first = in[0].narrow(3, 0, half), second = in[0].narrow(3, half, half);
  const at::Tensor cos = in[1].unsqueeze(2), sin = in[2].unsqueeze(2);
  return at::cat(
      {first * cos - second * sin, second * cos + first * sin, in[0].narrow(3, 2 * half, in[0].size(3) - 2 * half)}, 3);
}

class RotaryTest : public OperatorTest {
 protected:
  Case rotary_case(const at::Tensor& x, int64_t batch, int64_t half) const {
    const auto angle_options = options().dtype(at::kFloat);
    const at::Tensor angles = random_tensor({batch, x.size(1), half}, angle_options, 2) * 10;
    return {rotary, rotary_reference, {x, angles.cos(), angles.sin()}, 1};
  }
};

TEST_P(RotaryTest, KeepsEveryPromiseForEveryShape) {
  struct Shape {
    std::vector<int64_t> x;
    int64_t batch, half;
  };
  const std::vector<Shape> shapes = {{{2, 5, 3, 64}, 1, 32}, {{2, 5, 3, 64}, 2, 32}, {{3, 4, 2, 80}, 1, 16},
                                     {{1, 1, 1, 2}, 1, 1},   {{2, 3, 2, 7}, 2, 3},   {{2, 3, 2, 8}, 1, 0},
                                     {{0, 3, 2, 8}, 1, 4},   {{2, 0, 2, 8}, 2, 4},   {{2, 40, 8, 128}, 1, 64}};
  for (const auto& shape : shapes) {
    SCOPED_TRACE(::testing::PrintToString(shape.x));
    const Case c = rotary_case(random_tensor(shape.x, options(), 1), shape.batch, shape.half);
    expect_matches_reference(c);
    expect_inference_equals_training(c);
    expect_threads_do_not_matter(c);
    expect_meta_agrees(c);
  }
}

TEST_P(RotaryTest, StridedInputsGiveTheResultsOfTheirCopies) {
  const at::Tensor fused = random_tensor({2, 6, 3, 4 * 32}, options(), 1);
  for (const auto& x : {fused.narrow(3, 32, 32), fused.transpose(1, 2).narrow(3, 0, 64), fused.transpose(2, 3),
                        fused.narrow(1, 0, 1).expand({2, 6, 3, 128})}) {
    const Case c = rotary_case(x, 1, std::min<int64_t>(8, x.size(3) / 2));
    const Tensors strided = output_and_gradients(rotary, c.inputs, 1);
    const Tensors dense = output_and_gradients(rotary, {x.contiguous(), c.inputs[1], c.inputs[2]}, 1);
    expect_same_bits(strided[0], dense[0], "output");
    expect_same_bits(strided[1], dense[1], "gradient");
    EXPECT_TRUE(strided[0].is_contiguous());
    expect_meta_agrees(c);
  }
}

// Heads that are read in packs, and the same ones from starts, distances and halves that forbid it.
TEST_P(RotaryTest, PacksAndElementsGiveTheSameBits) {
  for (const int64_t rotated : {128, 64, 16, 8, 4, 2}) {
    const at::Tensor x = random_tensor({2, 3, 5, 128}, options(), 1);
    const Case c = rotary_case(x, 2, rotated / 2);
    const Tensors wanted = output_and_gradients(rotary, c.inputs, 1);
    expect_matches_reference(c);
    for (const auto& [skipped, width] : {std::pair<int64_t, int64_t>{1, 129}, {8, 136}, {3, 144}, {8, 137}}) {
      const at::Tensor wide = at::zeros({2, 3, 5, skipped + width}, options());
      wide.narrow(3, skipped, 128).copy_(x);
      const auto late = [](const at::Tensor& angles) {
        return at::cat({at::zeros({1}, angles.options()), angles.flatten()})
            .narrow(0, 1, angles.numel())
            .view(angles.sizes());
      };
      const Tensors ours =
          output_and_gradients(rotary, {wide.narrow(3, skipped, 128), late(c.inputs[1]), late(c.inputs[2])}, 1);
      const Tensors packed = output_and_gradients(rotary, {wide.narrow(3, skipped, 128), c.inputs[1], c.inputs[2]}, 1);
      for (size_t i = 0; i < wanted.size(); ++i) {
        expect_same_bits(ours[i], wanted[i],
                         "late angles, " + std::to_string(skipped) + " of " + std::to_string(width));
        expect_same_bits(packed[i], wanted[i], std::to_string(skipped) + " of " + std::to_string(width));
      }
    }
  }
}

// Queries and keys together, from places that can and that cannot be read in packs, whichever of the two learns.
TEST_P(RotaryTest, BothHaveTheBitsOfEach) {
  const auto both_of = [](const Tensors& in) {
    const auto [q, k] = kernels::rotary_embedding_of_both(in[0], in[1], in[2], in[3]);
    return at::cat({q, k}, 2);
  };
  const auto each_of = [](const Tensors& in) {
    return at::cat({kernels::rotary_embedding(in[0], in[2], in[3]), kernels::rotary_embedding(in[1], in[2], in[3])}, 2);
  };
  struct Shape {
    int64_t heads, kv_heads, width, half, skipped;
  };
  for (const Shape& s : {Shape{8, 2, 128, 64, 0},
                         {4, 4, 64, 16, 0},
                         {5, 1, 80, 16, 3},
                         {3, 2, 7, 3, 0},
                         {1, 9, 2, 1, 1},
                         {6, 3, 64, 32, 8},
                         {2, 1, 8, 0, 0},
                         {4, 0, 8, 4, 0}}) {
    SCOPED_TRACE(::testing::PrintToString(std::vector<int64_t>{s.heads, s.kv_heads, s.width, s.half, s.skipped}));
    const at::Tensor fused = random_tensor({2, 5, s.heads + s.kv_heads, s.skipped + s.width}, options(), 1);
    const at::Tensor q = fused.narrow(2, 0, s.heads).narrow(3, s.skipped, s.width);
    const at::Tensor k = fused.narrow(2, s.heads, s.kv_heads).narrow(3, s.skipped, s.width);
    const Case one = rotary_case(q, 2, s.half);
    const Case c{both_of, each_of, {q, k, one.inputs[1], one.inputs[2]}, 2};
    const Tensors ours = output_and_gradients(both_of, c.inputs, 2),
                  wanted = output_and_gradients(each_of, c.inputs, 2);
    for (size_t i = 0; i < 3; ++i) expect_same_bits(ours[i], wanted[i], "result " + std::to_string(i));
    expect_inference_equals_training(c);
    expect_threads_do_not_matter(c);
    expect_meta_agrees(c);
    for (const size_t learned : {0, 1}) {
      for (const size_t used : {0, 1}) {
        Tensors in{q.detach(), k.detach(), one.inputs[1], one.inputs[2]};
        in[learned].requires_grad_(true);
        const auto [y_q, y_k] = kernels::rotary_embedding_of_both(in[0], in[1], in[2], in[3]);
        const at::Tensor& y = used == 0 ? y_q : y_k;
        const auto gradient = torch::autograd::grad({y}, {in[learned]}, {at::ones_like(y)}, {}, false, true)[0];
        EXPECT_EQ(gradient.defined(), learned == used);
      }
    }
  }
}

TEST_P(RotaryTest, KeysMustBeLikeTheQueries) {
  const Case c = rotary_case(random_tensor({2, 3, 2, 8}, options(), 1), 1, 4);
  const auto& [q, cos, sin] = std::tie(c.inputs[0], c.inputs[1], c.inputs[2]);
  const at::ScalarType other = GetParam().dtype == at::kFloat ? at::kDouble : at::kFloat;
  for (const at::Tensor& k :
       {q.to(other), q.to(at::kMeta), q[0], q.narrow(0, 0, 1), q.narrow(1, 0, 2), at::cat({q, q}, 3), at::Tensor()}) {
    EXPECT_THROW(kernels::rotary_embedding_of_both(q, k, cos, sin), c10::Error);
  }
  EXPECT_THROW(kernels::rotary_embedding_of_both(q, q, cos.detach().requires_grad_(true), sin), c10::Error);
}

TEST_P(RotaryTest, AnglesMustBeFloat32ConstantsOfTheRightShape) {
  const Case c = rotary_case(random_tensor({2, 3, 2, 8}, options(), 1), 1, 4);
  const auto& [x, cos, sin] = std::tie(c.inputs[0], c.inputs[1], c.inputs[2]);
  EXPECT_THROW(kernels::rotary_embedding(x, cos.to(at::kBFloat16), sin.to(at::kBFloat16)), c10::Error);
  EXPECT_THROW(kernels::rotary_embedding(x, cos.to(at::kDouble), sin.to(at::kDouble)), c10::Error);
  EXPECT_THROW(kernels::rotary_embedding(x, cos, sin.narrow(2, 0, 3)), c10::Error);
  EXPECT_THROW(kernels::rotary_embedding(x.narrow(3, 0, 7), cos, sin), c10::Error);
  EXPECT_THROW(kernels::rotary_embedding(x.narrow(1, 0, 2), cos, sin), c10::Error);
  EXPECT_THROW(kernels::rotary_embedding(x[0], cos, sin), c10::Error);
  EXPECT_THROW(kernels::rotary_embedding(x, cos.to(at::kMeta), sin), c10::Error);
  EXPECT_THROW(kernels::rotary_embedding(x, cos.detach().requires_grad_(true), sin), c10::Error);
}

INSTANTIATE_TEST_SUITE_P(Operators, RotaryTest, every_device_and_dtype(), name_of);

// With sin = 0 the loop multiplies by cos and stores: every bit pattern of a 16-bit type, against c10's conversions.
template <class T>
void expect_exact_rounding(kernels::Storage storage, kernels::CpuIsa isa) {
  constexpr int64_t kPatterns = 1 << 16;
  std::vector<T> x(2 * kPatterns), y(2 * kPatterns);
  for (int64_t i = 0; i < kPatterns; ++i) {
    x[static_cast<size_t>(i)] = T(static_cast<uint16_t>(i), T::from_bits());
    x[static_cast<size_t>(kPatterns + i)] = T(1.0f);
  }
  const std::vector<float> sin(kPatterns, 0.0f);
  for (const float factor : {1.0f, 1.00390625f, 0.9990234375f, 3.14159274f, 0.5f, 1.5f, 1e-4f, 3e3f, 0.33203125f}) {
    const std::vector<float> cos(kPatterns, factor);
    kernels::rotary_loops_for(isa).rotate(
        storage, {x.data(), 0, 0, 0, cos.data(), sin.data(), 0, y.data(), 1, 1, 2 * kPatterns, kPatterns, false}, 0, 1);
    int64_t wrong = 0;
    for (size_t i = 0; i < kPatterns; ++i) {
      const T wanted(static_cast<float>(x[i]) * factor);
      const bool both_nan = std::isnan(static_cast<float>(wanted)) && std::isnan(static_cast<float>(y[i]));
      wrong += !both_nan && wanted.x != y[i].x;
    }
    EXPECT_EQ(wrong, 0) << "factor " << factor << ", instruction set " << static_cast<int>(isa);
  }
}

TEST(CpuLoops, ConversionsRoundToNearestEvenOnEveryInstructionSet) {
  for (int isa = 0; isa <= static_cast<int>(kernels::cpu_isa()); ++isa) {
    expect_exact_rounding<c10::BFloat16>(kernels::Storage::kBFloat16, static_cast<kernels::CpuIsa>(isa));
    expect_exact_rounding<c10::Half>(kernels::Storage::kFloat16, static_cast<kernels::CpuIsa>(isa));
  }
}

}  // namespace
}  // namespace limbeck::test
