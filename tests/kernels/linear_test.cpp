#include "kernels/linear/linear.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>
#include <string>
#include <tuple>

#include "kernels/linear/half_gemm_cpu.h"
#include "tests/kernels/gpu_case.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;

// One rounding to the storage dtype (half an ulp), and float32 sums: 1e-6 of the sum of absolute products covers any
// order of up to some thousands of terms. float64: the same with its own epsilon.
void expect_product(const Tensor& got, const Tensor& exact, const Tensor& sum_of_absolutes, const char* what) {
  const auto dtype = got.scalar_type();
  const double half_ulp = dtype == at::kHalf       ? 0x1p-11
                          : dtype == at::kBFloat16 ? 0x1p-8
                          : dtype == at::kFloat    ? 0x1p-24
                                                   : 0;
  const double sums = dtype == at::kDouble ? 1e-14 : 1e-6;
  const auto allowed = exact.abs() * half_ulp + sum_of_absolutes * sums + 0x1p-25;  // the last: float16 denormals
  const auto error = (got.to(at::kDouble) - exact).abs();
  EXPECT_TRUE((error <= allowed).all().item<bool>())
      << what << ": largest error over allowed " << (error / allowed).max().item<double>();
}

// Sets the float16 path for one test.
class PathGuard {
 public:
  explicit PathGuard(HalfGemmPath path) : before_(half_gemm_path()) { set_half_gemm_path(path); }
  ~PathGuard() { set_half_gemm_path(before_); }

 private:
  HalfGemmPath before_;
};

class ThreadsGuard {
 public:
  explicit ThreadsGuard(int threads) : before_(at::get_num_threads()) { at::set_num_threads(threads); }
  ~ThreadsGuard() { at::set_num_threads(before_); }

 private:
  int before_;
};

Tensor random(at::IntArrayRef sizes, at::ScalarType dtype) { return at::randn(sizes, at::kDouble).to(dtype); }

struct Shape {
  int64_t m, n, k;
};

class LinearValues : public ::testing::TestWithParam<std::tuple<at::ScalarType, HalfGemmPath, Shape, bool>> {};

TEST_P(LinearValues, ForwardAndGradientsMatchFloat64) {
  const auto [dtype, path, shape, with_bias] = GetParam();
  const PathGuard guard(path);
  at::manual_seed(7);
  auto x = random({shape.m, shape.k}, dtype).requires_grad_();
  auto w = random({shape.n, shape.k}, dtype).requires_grad_();
  auto b = random({shape.n}, dtype).requires_grad_();
  const auto dy = random({shape.m, shape.n}, dtype);
  const auto y = kernels::linear(x, w, with_bias ? std::optional<Tensor>(b) : std::nullopt);
  ASSERT_EQ(y.scalar_type(), dtype);
  std::vector<Tensor> inputs{x, w};
  if (with_bias) inputs.push_back(b);
  const auto grads = torch::autograd::grad({y}, inputs, {dy});

  const auto xd = x.detach().to(at::kDouble), wd = w.detach().to(at::kDouble), gd = dy.to(at::kDouble);
  auto exact = xd.mm(wd.t());
  auto absolute = xd.abs().mm(wd.abs().t());
  if (with_bias) {
    exact = exact + b.detach().to(at::kDouble);
    absolute = absolute + b.detach().to(at::kDouble).abs();
  }
  expect_product(y.detach(), exact, absolute, "y");
  expect_product(grads[0], gd.mm(wd), gd.abs().mm(wd.abs()), "dx");
  expect_product(grads[1], gd.t().mm(xd), gd.abs().t().mm(xd.abs()), "dweight");
  if (with_bias) expect_product(grads[2], gd.sum(0), gd.abs().sum(0), "dbias");
}

INSTANTIATE_TEST_SUITE_P(All, LinearValues,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kDouble, at::kBFloat16, at::kHalf),
                                            ::testing::Values(HalfGemmPath::kNative, HalfGemmPath::kWiden),
                                            ::testing::Values(Shape{1, 1, 1}, Shape{1, 33, 257}, Shape{7, 5, 3},
                                                              Shape{15, 100, 64}, Shape{130, 70, 513},
                                                              Shape{520, 530, 300}),
                                            ::testing::Bool()));

TEST(Linear, HalfErrorIsNotLargerThanAtens) {
  const PathGuard guard(HalfGemmPath::kWiden);
  at::manual_seed(1);
  for (const Shape& s : {Shape{512, 512, 2048}, Shape{2048, 1024, 1024}}) {
    const auto x = random({s.m, s.k}, at::kHalf), w = random({s.n, s.k}, at::kHalf);
    const auto exact = at::linear(x.to(at::kDouble), w.to(at::kDouble));
    const auto rms = [&](const Tensor& y) { return (y.to(at::kDouble) - exact).square().mean().sqrt().item<double>(); };
    const double ours = rms(kernels::linear(x, w)), aten = rms(at::linear(x, w));
    // Both are one float16 rounding of float32 sums: they may differ by what the order of the sums moves across a tie.
    EXPECT_LE(ours, aten * (1 + 1e-5)) << s.m << "x" << s.n << "x" << s.k;
  }
}

TEST(Linear, HalfGivesTheSameBitsForAnyThreadsAndAnyOtherRows) {
  const PathGuard guard(HalfGemmPath::kWiden);
  at::manual_seed(2);
  const auto x = random({131, 700}, at::kHalf), w = random({517, 700}, at::kHalf), b = random({517}, at::kHalf);
  Tensor one, two;
  {
    const ThreadsGuard threads(1);
    one = kernels::linear(x, w, b);
  }
  {
    const ThreadsGuard threads(2);
    two = kernels::linear(x, w, b);
    EXPECT_TRUE(at::equal(kernels::linear(x.slice(0, 40, 41), w, b), two.slice(0, 40, 41)));
  }
  EXPECT_TRUE(at::equal(one, two));
}

TEST(Linear, HalfReadsAnyStrides) {
  const PathGuard guard(HalfGemmPath::kWiden);
  at::manual_seed(3);
  const auto wide = random({40, 3 * 64}, at::kHalf);
  const auto w = random({96, 64}, at::kHalf);
  for (const Tensor& x :
       {wide.slice(1, 64, 128), random({64, 40}, at::kHalf).t(), random({40, 128}, at::kHalf).slice(1, 0, 128, 2),
        random({1, 64}, at::kHalf).expand({40, 64})}) {
    EXPECT_TRUE(at::equal(kernels::linear(x, w), kernels::linear(x.contiguous(), w)));
  }
  const auto x = random({2, 5, 64}, at::kHalf);
  EXPECT_TRUE(at::equal(kernels::linear(x, w.t().contiguous().t()), kernels::linear(x, w)));
  EXPECT_EQ(kernels::linear(x, w).sizes(), at::IntArrayRef({2, 5, 96}));
  EXPECT_EQ(kernels::linear(x.slice(1, 0, 0), w).sizes(), at::IntArrayRef({2, 0, 96}));
  EXPECT_EQ(kernels::linear(x[0][0], w).sizes(), at::IntArrayRef({96}));
}

TEST(Linear, HalfKeepsInfinitiesAndNans) {
  const PathGuard guard(HalfGemmPath::kWiden);
  const auto x = at::ones({4, 32}, at::kHalf), w = at::ones({3, 32}, at::kHalf);
  x[0][5] = std::numeric_limits<float>::infinity();
  x[1][0] = std::numeric_limits<float>::quiet_NaN();
  x[2].fill_(60000.0);  // 32 * 60000 overflows float16
  const auto y = kernels::linear(x, w).to(at::kFloat);
  EXPECT_TRUE(y[0].isposinf().all().item<bool>());
  EXPECT_TRUE(y[1].isnan().all().item<bool>());
  EXPECT_TRUE(y[2].isposinf().all().item<bool>());
  EXPECT_TRUE((y[3] == 32).all().item<bool>());
}

TEST(Linear, HalfHasSecondDerivatives) {
  const PathGuard guard(HalfGemmPath::kWiden);
  at::manual_seed(4);
  auto x = random({3, 8}, at::kHalf).requires_grad_(), w = random({5, 8}, at::kHalf).requires_grad_();
  const auto dy = random({3, 5}, at::kHalf);
  const auto dx = torch::autograd::grad({kernels::linear(x, w)}, {x}, {dy}, std::nullopt, /*create_graph=*/true)[0];
  const auto dw = torch::autograd::grad({dx}, {w}, {at::ones_like(dx)})[0];
  // d(sum dx)/dW[n, k] = sum over m of dy[m, n]
  const auto exact = dy.to(at::kDouble).sum(0).unsqueeze(1).expand({5, 8});
  expect_product(dw, exact, dy.to(at::kDouble).abs().sum(0).unsqueeze(1).expand({5, 8}), "second derivative");
}

TEST(Linear, RefusesMixedDtypesDevicesAndShapes) {
  const auto x = at::ones({2, 4}, at::kHalf);
  const auto message = [&](const Tensor& weight, const std::optional<Tensor>& bias = std::nullopt) -> std::string {
    try {
      kernels::linear(x, weight, bias);
    } catch (const c10::Error& e) {
      return e.what_without_backtrace();
    }
    return "accepted";
  };
  EXPECT_NE(message(at::ones({3, 4})).find("[linear] weight is Float, wanted Half"), std::string::npos);
  EXPECT_NE(message(at::ones({3, 4}, at::kBFloat16)).find("[linear] weight is BFloat16"), std::string::npos);
  EXPECT_NE(message(at::ones({3, 5}, at::kHalf)).find("[linear] x is [2, 4], wanted [..., 5]"), std::string::npos);
  EXPECT_NE(message(at::ones({3, 4}, at::kHalf), at::ones({3})).find("[linear] bias is Float"), std::string::npos);
  EXPECT_NE(message(at::ones({3, 4}, at::kHalf), at::ones({4}, at::kHalf)).find("[linear] bias is [4], wanted [3]"),
            std::string::npos);
  EXPECT_NE(message(at::ones({3, 4}, x.options().device(at::kMeta))).find("[linear] weight is on meta, wanted cpu"),
            std::string::npos);
  EXPECT_THROW(kernels::linear(at::ones({2, 4}, at::kLong), at::ones({3, 4}, at::kLong)), c10::Error);
}

TEST(Linear, MetaGivesShapesAndDtypesForwardAndBackward) {
  const auto on_meta = at::TensorOptions().device(at::kMeta).dtype(at::kHalf);
  auto x = at::empty({2, 3, 4}, on_meta).requires_grad_(), w = at::empty({5, 4}, on_meta).requires_grad_();
  const auto y = kernels::linear(x, w, at::empty({5}, on_meta));
  EXPECT_EQ(y.sizes(), at::IntArrayRef({2, 3, 5}));
  EXPECT_EQ(y.scalar_type(), at::kHalf);
  EXPECT_TRUE(y.is_meta());
  const auto grads = torch::autograd::grad({y}, {x, w}, {at::empty_like(y)});
  EXPECT_EQ(grads[0].sizes(), x.sizes());
  EXPECT_EQ(grads[1].sizes(), w.sizes());
}

TEST(LinearCuda, MatchesFloat64) {
  LIMBECK_NEEDS_GPU();
  at::manual_seed(5);
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const auto x = random({64, 300}, dtype), w = random({48, 300}, dtype), b = random({48}, dtype);
    const auto y = kernels::linear(x.to(at::kCUDA), w.to(at::kCUDA), b.to(at::kCUDA)).cpu();
    const auto xd = x.to(at::kDouble), wd = w.to(at::kDouble), bd = b.to(at::kDouble);
    expect_product(y, at::linear(xd, wd, bd), at::linear(xd.abs(), wd.abs(), bd.abs()), "y");
  }
}

}  // namespace
}  // namespace limbeck::kernels
