// Rows that are seen as their 8-bit codes: how far from what they were, against rounding in float64, on both devices.
#include "kernels/quantized/row_codes.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>

#include "gpu_case.h"
#include "support/operator_checks.h"

namespace limbeck::test {
namespace {

at::Tensor seen(const Tensors& in) { return kernels::seen_through_row_codes(in[0]); }

// Of rows of numbers that differ by many orders of magnitude from row to row.
at::Tensor rows_of(at::IntArrayRef shape, uint64_t seed) {
  std::vector<int64_t> each = shape.vec();
  each.back() = 1;
  return random_tensor(shape, at::kFloat, seed) * random_tensor(each, at::kFloat, seed + 1).mul(8).exp();
}

TEST(RowCodes, AreRoundedAsFloat64RoundsByHalfAStepAtMost) {
  for (const int64_t width : {1, 2, 3, 8, 16, 17, 64, 1000}) {
    const at::Tensor x = rows_of({5, 40, width}, static_cast<uint64_t>(width)), y = seen({x});
    const at::Tensor exact = x.to(at::kDouble), scale = exact.abs().amax(-1, true) / 127;
    const at::Tensor codes = y.to(at::kDouble) / scale, wanted = (exact / scale).round();
    EXPECT_LT((codes - codes.round()).abs().max().item<double>(), 1e-4) << width;
    EXPECT_LE((codes - exact / scale).abs().max().item<double>(), 0.5 + 1e-4) << width;
    // Where float32 has the quotient of float64 on the other side of a half, the other code is as near.
    EXPECT_LT((codes.round() - wanted).ne(0).to(at::kDouble).mean().item<double>(), width < 64 ? 1e-9 : 1e-4) << width;
    const bool rounds = (y - x).abs().max().item<double>() > 0;
    EXPECT_TRUE(width == 1 || rounds) << width;
  }
}

TEST(RowCodes, OfOneScaleAreWithinHalfAStepAndEndAtTheBound) {
  const at::Tensor x = random_tensor({50, 40}, at::kFloat, 7).requires_grad_();
  const double bound = 1.7, step = bound / 127;
  const at::Tensor y = kernels::seen_in_steps(x, bound), exact = x.detach().to(at::kDouble).clamp(-bound, bound);
  EXPECT_TRUE((x.detach().abs() > bound).any().item<bool>());
  const at::Tensor codes = y.detach().to(at::kDouble) / step;
  EXPECT_LT((codes - codes.round()).abs().max().item<double>(), 1e-4);
  EXPECT_LE((codes - exact / step).abs().max().item<double>(), 0.5 + 1e-4);
  const at::Tensor grad = random_tensor({50, 40}, at::kFloat, 8);
  y.backward(grad);
  expect_same_bits(x.grad(), grad, "gradient");
}

TEST(RowCodes, PassTheGradientOn) {
  const Tensors in{rows_of({7, 33}, 1)};
  const at::Tensor x = in[0].detach().requires_grad_(), grad = random_tensor({7, 33}, at::kFloat, 3);
  kernels::seen_through_row_codes(x).backward(grad);
  expect_same_bits(x.grad(), grad, "gradient");
}

TEST(RowCodes, DependOnTheRowAlone) {
  const at::Tensor x = rows_of({3000, 24}, 4);
  const Case c{seen, seen, {x}, 1};
  expect_inference_equals_training(c);
  expect_threads_do_not_matter(c);
  expect_meta_agrees(c);
  const at::Tensor all = seen({x});
  for (const int64_t row : {0, 1, 17, 2999}) expect_same_bits(all[row], seen({x[row]}), "a row alone");
  const at::Tensor turned = x.view({30, 100, 24}).transpose(0, 2);
  expect_same_bits(seen({turned}), seen({turned.contiguous()}), "strides");
  EXPECT_EQ(seen({x.narrow(0, 0, 0)}).sizes(), at::IntArrayRef({0, 24}));
  EXPECT_EQ(seen({x.narrow(1, 0, 0)}).sizes(), at::IntArrayRef({3000, 0}));
}

TEST(RowCodes, OfZerosAreZerosAndOfWhatIsNotFiniteNan) {
  at::Tensor x = rows_of({5, 9}, 5);
  x[1].zero_();
  x[2][3] = std::numeric_limits<float>::infinity();
  x[3][8] = std::numeric_limits<float>::quiet_NaN();
  const at::Tensor y = seen({x});
  EXPECT_TRUE(y[1].eq(0).all().item<bool>());
  EXPECT_TRUE(y[2].isnan().all().item<bool>() && y[3].isnan().all().item<bool>());
  EXPECT_TRUE(y[0].isfinite().all().item<bool>() && y[4].isfinite().all().item<bool>());
}

TEST(RowCodes, AreOfFloat32Alone) {
  for (const auto dtype : {at::kDouble, at::kBFloat16, at::kHalf}) {
    try {
      seen({at::ones({2, 3}, dtype)});
      ADD_FAILURE() << dtype << " was taken";
    } catch (const c10::Error& error) {
      EXPECT_NE(std::string(error.what()).find("[seen_through_row_codes] x is"), std::string::npos) << error.what();
    }
  }
}

TEST(RowCodes, cuda_HaveTheBitsOfTheCpu) {
  LIMBECK_NEEDS_GPU();
  for (const int64_t width : {1, 2, 9, 33, 300}) {
    at::Tensor x = rows_of({4, 6, width}, static_cast<uint64_t>(10 + width));
    x[1][2].zero_();
    const Tensors wanted = output_and_gradients(seen, {x}, 1), got = output_and_gradients(seen, {x.cuda()}, 1);
    for (size_t k = 0; k < got.size(); ++k) expect_same_bits(got[k].cpu(), wanted[k], std::to_string(width));
    const at::Tensor turned = x.transpose(0, 2);
    expect_same_bits(seen({turned.cuda()}).cpu(), seen({turned}), "strides");
  }
  EXPECT_EQ(seen({at::ones({0, 3}).cuda()}).numel(), 0);
}

}  // namespace
}  // namespace limbeck::test
