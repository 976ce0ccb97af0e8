#include "kernels/quantized/quantized_linear.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <map>
#include <tuple>

#include "kernels/quantized/quantized_operands.h"
#include "tests/support/cpu_memory.h"
#include "tests/support/operator_checks.h"
#include "tests/support/quantized_formats.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;

Tensor drawn(at::IntArrayRef sizes, at::ScalarType dtype, uint64_t seed) {
  return test::random_tensor(sizes, at::TensorOptions().dtype(dtype), seed);
}

// What x of a dtype is multiplied with: of bfloat16 x the matrix's values are rounded once, as on CUDA.
Tensor met_by(at::ScalarType dtype, const Tensor& values) {
  return dtype == at::kBFloat16 ? values.to(at::kBFloat16) : values;
}

// One rounding to the dtype (half an ulp) of a float32 sum: 1e-6 of the sum of absolute products covers any order of up
// to some thousands of terms.
void expect_quantized_product(const Tensor& got, const Tensor& exact, const Tensor& sum_of_absolutes,
                              const std::string& what) {
  const auto dtype = got.scalar_type();
  const double half_ulp = dtype == at::kHalf ? 0x1p-11 : dtype == at::kBFloat16 ? 0x1p-8 : 0x1p-24;
  const auto allowed = exact.abs() * half_ulp + sum_of_absolutes * 1e-6 + 0x1p-25;  // the last: float16 denormals
  const auto error = (got.to(at::kDouble) - exact).abs();
  EXPECT_TRUE((error <= allowed).all().item<bool>())
      << what << ": largest error over allowed " << (error / allowed).max().item<double>();
}

struct ProductShape {
  int64_t m, n, k;
};

class QuantizedLinearValues
    : public ::testing::TestWithParam<std::tuple<QuantizedFormat, at::ScalarType, ProductShape, bool>> {
 protected:
  static void TearDownTestSuite() { weights_.clear(); }

  // Of one format at a time, for all dtypes and rows of x: to draw and quantize it takes as long as a case does.
  static const QuantizedMatrix& weight_of(const QuantizedFormat& format, int64_t rows, int64_t columns) {
    if (!weights_.empty() && weights_.begin()->second.format != format) weights_.clear();
    const auto [found, fresh] = weights_.try_emplace({rows, columns});
    if (fresh) found->second = quantize(drawn({rows, columns}, at::kFloat, 1), format);
    return found->second;
  }

 private:
  inline static std::map<std::pair<int64_t, int64_t>, QuantizedMatrix> weights_;  // by rows and columns
};

TEST_P(QuantizedLinearValues, ForwardAndGradientsMatchFloat64) {
  const auto [format, dtype, shape, with_bias] = GetParam();
  const QuantizedMatrix& weight = weight_of(format, shape.n, shape.k);
  auto x = drawn({shape.m, shape.k}, dtype, 2).requires_grad_(), b = drawn({shape.n}, dtype, 3).requires_grad_();
  const auto dy = drawn({shape.m, shape.n}, dtype, 4);
  const auto bias = with_bias ? std::optional<Tensor>(b) : std::nullopt;
  const auto y = quantized_linear(x, weight, bias);
  ASSERT_EQ(y.scalar_type(), dtype);
  const auto grads = torch::autograd::grad({y}, with_bias ? std::vector<Tensor>{x, b} : std::vector<Tensor>{x}, {dy});

  const auto wd = met_by(dtype, dequantize_rows(weight, 0, shape.n)).to(at::kDouble), xd = x.detach().to(at::kDouble);
  const auto gd = dy.to(at::kDouble), bd = with_bias ? b.detach().to(at::kDouble) : at::zeros({shape.n}, at::kDouble);
  expect_quantized_product(y.detach(), xd.mm(wd.t()) + bd, xd.abs().mm(wd.abs().t()) + bd.abs(), "y");
  expect_quantized_product(grads[0], gd.mm(wd), gd.abs().mm(wd.abs()), "dx");
  if (with_bias) expect_quantized_product(grads[1], gd.sum(0), gd.abs().sum(0), "dbias");
}

INSTANTIATE_TEST_SUITE_P(All, QuantizedLinearValues,
                         ::testing::Combine(::testing::ValuesIn(test::every_static_format()),
                                            ::testing::Values(at::kFloat, at::kBFloat16, at::kHalf),
                                            ::testing::Values(ProductShape{1, 1, 1}, ProductShape{1, 33, 257},
                                                              ProductShape{7, 5, 3}, ProductShape{130, 70, 513},
                                                              ProductShape{520, 530, 300}),
                                            ::testing::Bool()));

// Issue 16: layers of models, input widths that no word or block divides, and each number of rows that has a body of
// its own.
INSTANTIATE_TEST_SUITE_P(Layers, QuantizedLinearValues,
                         ::testing::Combine(::testing::ValuesIn(test::every_static_format()),
                                            ::testing::Values(at::kFloat, at::kBFloat16, at::kHalf),
                                            ::testing::Values(ProductShape{1, 512, 1024}, ProductShape{16, 512, 1024},
                                                              ProductShape{17, 512, 1024}, ProductShape{1, 1024, 512},
                                                              ProductShape{16, 1024, 512}, ProductShape{17, 1024, 512},
                                                              ProductShape{1, 90, 100}, ProductShape{16, 90, 100},
                                                              ProductShape{17, 90, 100}, ProductShape{1, 90, 130},
                                                              ProductShape{16, 90, 130}, ProductShape{17, 90, 130}),
                                            ::testing::Values(true)));
INSTANTIATE_TEST_SUITE_P(FewRows, QuantizedLinearValues,
                         ::testing::Combine(::testing::ValuesIn(test::every_static_format()),
                                            ::testing::Values(at::kFloat, at::kBFloat16, at::kHalf),
                                            ::testing::Values(ProductShape{2, 101, 320}, ProductShape{3, 101, 320},
                                                              ProductShape{4, 101, 320}, ProductShape{5, 101, 320},
                                                              ProductShape{6, 101, 320}, ProductShape{7, 101, 320},
                                                              ProductShape{8, 101, 320}, ProductShape{9, 101, 320}),
                                            ::testing::Bool()));

class QuantizedLinearOf : public ::testing::TestWithParam<QuantizedFormat> {};

TEST_P(QuantizedLinearOf, TheSameBitsForAnyThreadsAnyOtherRowsAndWithoutGradients) {
  const auto weight = quantize(drawn({517, 700}, at::kFloat, 5), GetParam());
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const auto x = drawn({131, 700}, dtype, 6), b = drawn({517}, dtype, 7), dy = drawn({131, 517}, dtype, 8);
    const int threads = at::get_num_threads();
    std::vector<Tensor> y, dx;
    for (const int count : {1, 2}) {
      at::set_num_threads(count);
      auto leaf = x.detach().requires_grad_();
      y.push_back(quantized_linear(leaf, weight, b));
      dx.push_back(torch::autograd::grad({y.back()}, {leaf}, {dy})[0]);
    }
    at::set_num_threads(threads);
    test::expect_same_bits(y[0], y[1], "y");
    test::expect_same_bits(dx[0], dx[1], "dx");
    test::expect_same_bits(quantized_linear(x.slice(0, 40, 41), weight, b), y[0].slice(0, 40, 41), "one row");
    const c10::InferenceMode inference;
    test::expect_same_bits(quantized_linear(x, weight, b), y[0], "inference");
  }
}

// The codes of few rows go straight to the sums, those of many through float32 rectangles; 704 is whole blocks of nf4,
// and 261 columns of y are more than one tile.
TEST_P(QuantizedLinearOf, ARowHasTheSameBitsAmongFewAndAmongMany) {
  for (const auto scales : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const int64_t width : {int64_t{704}, int64_t{330}, int64_t{5}}) {
      const auto weight = quantize(drawn({261, width}, at::kFloat, 5), GetParam(), scales);
      for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
        const auto x = drawn({60, width}, dtype, 6), b = drawn({261}, dtype, 7);
        const auto all = quantized_linear(x, weight, b);
        for (int64_t rows = 1; rows <= 10; ++rows) {
          test::expect_same_bits(quantized_linear(x.slice(0, 7, 7 + rows), weight, b), all.slice(0, 7, 7 + rows),
                                 std::to_string(rows) + " rows of width " + std::to_string(width));
        }
      }
    }
  }
}

TEST_P(QuantizedLinearOf, FewRowsHaveTheSameBitsOnTwoThreads) {
  const auto weight = quantize(drawn({1000, 1024}, at::kFloat, 5), GetParam());
  const int threads = at::get_num_threads();
  for (const int64_t rows : {1, 3, 8}) {
    const auto x = drawn({rows, 1024}, at::kBFloat16, 6);
    at::set_num_threads(1);
    const auto alone = quantized_linear(x, weight);
    at::set_num_threads(2);
    test::expect_same_bits(quantized_linear(x, weight), alone, std::to_string(rows) + " rows");
    at::set_num_threads(threads);
  }
}

TEST_P(QuantizedLinearOf, ReadsAnyStridesAndEmptyBatches) {
  const auto weight = quantize(drawn({9, 64}, at::kFloat, 5), GetParam());
  const auto wide = drawn({10, 3 * 64}, at::kFloat, 6);
  for (const Tensor& x : {wide.slice(1, 64, 128), drawn({64, 10}, at::kFloat, 7).t(), wide.slice(1, 0, 128, 2)})
    test::expect_same_bits(quantized_linear(x, weight), quantized_linear(x.contiguous(), weight), "strides");
  const auto x = drawn({2, 5, 64}, at::kFloat, 8);
  EXPECT_EQ(quantized_linear(x, weight).sizes(), at::IntArrayRef({2, 5, 9}));
  EXPECT_EQ(quantized_linear(x.slice(1, 0, 0), weight).sizes(), at::IntArrayRef({2, 0, 9}));
  EXPECT_EQ(quantized_linear(x[0][0], weight).sizes(), at::IntArrayRef({9}));
}

TEST_P(QuantizedLinearOf, MetaGivesShapesForwardAndBackward) {
  const auto on_meta = at::TensorOptions().device(at::kMeta).dtype(at::kHalf);
  const auto weight = quantize(at::empty({5, 4}, on_meta), GetParam());
  auto x = at::empty({2, 3, 4}, on_meta).requires_grad_(), b = at::empty({5}, on_meta).requires_grad_();
  const auto y = quantized_linear(x, weight, b);
  EXPECT_EQ(y.sizes(), at::IntArrayRef({2, 3, 5}));
  EXPECT_EQ(y.scalar_type(), at::kHalf);
  const auto grads = torch::autograd::grad({y}, {x, b}, {at::empty_like(y)});
  EXPECT_EQ(grads[0].sizes(), x.sizes());
  EXPECT_EQ(grads[1].sizes(), b.sizes());
}

TEST_P(QuantizedLinearOf, NeverHoldsTheWholeWeight) {
  const auto weight = quantize(drawn({2048, 1024}, at::kFloat, 5), GetParam());  // 8 MiB in float32
  auto x = drawn({4, 1024}, at::kFloat, 6).requires_grad_();
  const test::CpuMemory memory;
  quantized_linear(x, weight).sum().backward();
  EXPECT_LT(memory.peak(), 1 << 20);
}

TEST_P(QuantizedLinearOf, RefusesMixedDtypesDevicesAndShapes) {
  const auto weight = quantize(drawn({3, 4}, at::kFloat, 5), GetParam());
  const auto message = [&](const Tensor& x, const std::optional<Tensor>& bias = std::nullopt) -> std::string {
    try {
      quantized_linear(x, weight, bias);
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    }
    return "accepted";
  };
  const auto names = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  EXPECT_TRUE(names(message(at::ones({2, 4}, at::kDouble)), "[quantized_linear] x is float64 [2, 4] on cpu, wanted"));
  EXPECT_TRUE(names(message(at::ones({2, 5})), "wanted [..., 4] for a weight [3, 4]"));
  EXPECT_TRUE(names(message(at::ones({2, 4}), at::ones({3}, at::kHalf)), "[quantized_linear] bias is float16"));
  EXPECT_TRUE(names(message(at::ones({2, 4}), at::ones({4})), "bias is float32 [4] on cpu, wanted [3]"));
  EXPECT_TRUE(names(message(at::ones({2, 4}, at::TensorOptions().device(at::kMeta))), "the weight is on cpu"));
}

TEST_P(QuantizedLinearOf, HasNoSecondDerivative) {
  const auto weight = quantize(drawn({3, 4}, at::kFloat, 5), GetParam());
  auto x = at::ones({2, 4}).requires_grad_(), dy = at::ones({2, 3}).requires_grad_();
  const auto dx = torch::autograd::grad({quantized_linear(x, weight)}, {x}, {dy}, std::nullopt, true)[0];
  EXPECT_THROW(torch::autograd::grad({dx.sum()}, {dy}), c10::Error);
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizedLinearOf, ::testing::ValuesIn(test::every_static_format()),
                         [](const auto& instance) { return test::format_label(instance.param); });

}  // namespace
}  // namespace limbeck::kernels
