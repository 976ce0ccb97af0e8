// The quantized operators on CUDA against the CPU's and float64.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>
#include <string>
#include <tuple>

#include "gpu_case.h"
#include "kernels/quantized/quantized_linear.h"
#include "kernels/quantized/quantized_plan.h"
#include "support/operator_checks.h"
#include "support/quantized_formats.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;

Tensor values_of(at::IntArrayRef sizes, at::ScalarType dtype, uint64_t seed) {
  return test::random_tensor(sizes, at::TensorOptions().dtype(dtype), seed);
}

QuantizedMatrix on_gpu(QuantizedMatrix matrix) {
  for (Tensor& part : matrix.parts) part = part.cuda();
  return matrix;
}

// As in quantized_linear_test.cpp: one rounding, and 1e-6 of the sum of absolute products for the order of float32.
void expect_product(const Tensor& got, const Tensor& a, const Tensor& b, const Tensor& bias, const std::string& what) {
  const auto dtype = got.scalar_type();
  const Tensor x = a.to(at::kDouble), w = b.to(at::kDouble), c = bias.to(at::kDouble);
  const Tensor exact = x.mm(w) + c, absolute = x.abs().mm(w.abs()) + c.abs();
  const double half_ulp = dtype == at::kHalf ? 0x1p-11 : dtype == at::kBFloat16 ? 0x1p-8 : 0x1p-24;
  const Tensor allowed = exact.abs() * half_ulp + absolute * 1e-6 + 0x1p-25;
  const Tensor error = (got.cpu().to(at::kDouble) - exact).abs();
  ASSERT_EQ(error.sizes(), exact.sizes()) << what;
  EXPECT_TRUE((error <= allowed).all().item<bool>())
      << what << ": largest error over allowed " << (error / allowed).max().item<double>();
}

struct GpuShape {
  int64_t count, rows, columns;
};

class QuantizedCuda
    : public ::testing::TestWithParam<std::tuple<QuantizedFormat, at::ScalarType, GpuShape, bool, int64_t>> {
 protected:
  void TearDown() override { set_unpacked_bytes(0); }
};

TEST_P(QuantizedCuda, cuda_ValuesAndGradientsAreThoseOfFloat64AndTheSameAgain) {
  LIMBECK_NEEDS_GPU();
  const auto [format, dtype, shape, with_bias, scratch] = GetParam();
  set_unpacked_bytes(scratch);
  const auto here = quantize(values_of({shape.rows, shape.columns}, at::kFloat, 1), format);
  const auto weight = on_gpu(here);
  const Tensor rounded = dequantize_rows(here, 0, shape.rows).to(dtype);
  const Tensor x = values_of({shape.count, shape.columns}, dtype, 2), b = values_of({shape.rows}, dtype, 3);
  const Tensor dy = values_of({shape.count, shape.rows}, dtype, 4);
  const auto bias = with_bias ? std::optional<Tensor>(b.cuda()) : std::nullopt;
  const auto run = [&] {
    const Tensor leaf = x.cuda().requires_grad_();
    const Tensor y = quantized_linear(leaf, weight, bias);
    return std::pair{y.detach(), torch::autograd::grad({y}, {leaf}, {dy.cuda()})[0]};
  };
  const auto [y, dx] = run();
  const auto [y_again, dx_again] = run();
  ASSERT_EQ(y.scalar_type(), dtype);
  ASSERT_EQ(dx.scalar_type(), dtype);
  const Tensor added = with_bias ? b : at::zeros({shape.rows}, dtype);
  expect_product(y, x, rounded.t(), added, "y");
  expect_product(dx, dy, rounded, at::zeros({shape.columns}, dtype), "dx");
  test::expect_same_bits(y.cpu(), y_again.cpu(), "y again");
  test::expect_same_bits(dx.cpu(), dx_again.cpu(), "dx again");
}

const auto kFormats = ::testing::ValuesIn(test::every_static_format());
const auto kDtypes = ::testing::Values(at::kFloat, at::kBFloat16, at::kHalf);

// The bias is the number's last binary digit: by it tests/kernels/CMakeLists.txt chooses the order of threads.
// Columns of 1, 75, 129 and 257 begin rows inside bytes, groups and blocks; those of 96, 128, 544 are read in packs,
// 96 and 544 with rows that begin inside blocks and last groups that are shorter.
INSTANTIATE_TEST_SUITE_P(Shapes, QuantizedCuda,
                         ::testing::Combine(kFormats, kDtypes,
                                            ::testing::Values(GpuShape{1, 1, 1}, GpuShape{1, 33, 257},
                                                              GpuShape{1, 37, 544}, GpuShape{3, 5, 75},
                                                              GpuShape{8, 70, 129}, GpuShape{8, 19, 2048},
                                                              GpuShape{9, 70, 129}, GpuShape{9, 33, 96},
                                                              GpuShape{300, 66, 128}, GpuShape{300, 21, 75}),
                                            ::testing::Bool(), ::testing::Values(0)));
// Scratch for 7 rows of 75 or 4 of 128 in half types (3 and 2 in float32): sums over many runs, the last one shorter.
INSTANTIATE_TEST_SUITE_P(Runs, QuantizedCuda,
                         ::testing::Combine(kFormats, kDtypes,
                                            ::testing::Values(GpuShape{9, 41, 75}, GpuShape{40, 66, 128}),
                                            ::testing::Bool(), ::testing::Values(1100)));

class Int8DynamicCuda : public ::testing::TestWithParam<std::tuple<at::ScalarType, GpuShape, bool>> {};

// Sums of integers and five roundings in one order: nothing that a device could do otherwise.
TEST_P(Int8DynamicCuda, cuda_ValuesHaveTheBitsOfTheCpuAndGradientsThoseOfInt8) {
  LIMBECK_NEEDS_GPU();
  const auto [dtype, shape, with_bias] = GetParam();
  const auto here = quantize(values_of({shape.rows, shape.columns}, at::kFloat, 1), QuantizedFormat::kInt8Dynamic);
  const auto there = on_gpu(here);
  QuantizedMatrix plain = there;
  plain.format = QuantizedFormat::kInt8;
  const Tensor x = values_of({shape.count, shape.columns}, dtype, 2), b = values_of({shape.rows}, dtype, 3);
  const auto bias = with_bias ? std::optional<Tensor>(b) : std::nullopt;
  const auto bias_there = with_bias ? std::optional<Tensor>(b.cuda()) : std::nullopt;
  const Tensor leaf = x.cuda().requires_grad_(), dy = values_of({shape.count, shape.rows}, dtype, 4).cuda();
  const Tensor y = quantized_linear(leaf, there, bias_there);
  test::expect_same_bits(y.detach().cpu(), quantized_linear(x, here, bias), "y");
  const auto gradient = [&](const Tensor& of) { return torch::autograd::grad({of}, {leaf}, {dy})[0].cpu(); };
  test::expect_same_bits(gradient(y), gradient(quantized_linear(leaf, plain, bias_there)), "dx");
}

// Packs and single codes, by our own kernel and (more than 16 rows, multiples of 8) by cuBLAS.
INSTANTIATE_TEST_SUITE_P(Shapes, Int8DynamicCuda,
                         ::testing::Combine(kDtypes,
                                            ::testing::Values(GpuShape{1, 1, 1}, GpuShape{1, 33, 257},
                                                              GpuShape{3, 5, 75}, GpuShape{8, 19, 2048},
                                                              GpuShape{16, 64, 96}, GpuShape{17, 64, 96},
                                                              GpuShape{17, 33, 96}, GpuShape{300, 72, 136}),
                                            ::testing::Bool()));

TEST(Int8DynamicCuda, cuda_ReadsStridesAndRowsThatAreZeroOrNotFinite) {
  LIMBECK_NEEDS_GPU();
  const auto here = quantize(values_of({9, 64}, at::kFloat, 15), QuantizedFormat::kInt8Dynamic);
  const auto there = on_gpu(here);
  for (const int64_t count : {4, 24}) {
    Tensor wide = values_of({count, 3 * 64}, at::kFloat, 16);
    wide[1].zero_();
    wide[2][70] = std::numeric_limits<float>::infinity();
    wide[3][71] = std::numeric_limits<float>::quiet_NaN();
    for (const auto& [begin, step] : {std::pair<int64_t, int64_t>{64, 1}, {0, 2}}) {
      const Tensor x = wide.slice(1, begin, begin + 64 * step, step), y = quantized_linear(x, here);
      const Tensor got = quantized_linear(wide.cuda().slice(1, begin, begin + 64 * step, step), there).cpu();
      EXPECT_TRUE(got.isnan().equal(y.isnan()));
      EXPECT_TRUE(got[3].isnan().all().item<bool>() || step == 2);
      test::expect_same_bits(got.nan_to_num(), y.nan_to_num(), "strides");
    }
  }
  EXPECT_EQ(quantized_linear(at::ones({2, 0, 64}).cuda(), there).sizes(), at::IntArrayRef({2, 0, 9}));
}

class QuantizedCudaOf : public ::testing::TestWithParam<QuantizedFormat> {};

TEST_P(QuantizedCudaOf, cuda_UnpackedRowsHaveTheBitsOfTheCpu) {
  LIMBECK_NEEDS_GPU();
  for (const int64_t columns : {1, 31, 32, 75, 96, 128, 300, 1024}) {
    const auto here = quantize(values_of({37, columns}, at::kFloat, 11), GetParam()), there = on_gpu(here);
    for (const auto& [row, count] : {std::pair<int64_t, int64_t>{0, 37}, {5, 21}, {36, 1}, {12, 0}})
      test::expect_same_bits(dequantize_rows(there, row, count).cpu(), dequantize_rows(here, row, count), "rows");
  }
}

// Products with rows of the identity are the weight's values and zeros.
TEST_P(QuantizedCudaOf, cuda_UnpackedValuesAreRoundedOnce) {
  LIMBECK_NEEDS_GPU();
  for (const int64_t columns : {31, 96}) {
    const auto here = quantize(values_of({37, columns}, at::kFloat, 12), GetParam()), there = on_gpu(here);
    for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      const Tensor eye = at::eye(columns, dtype), wanted = dequantize_rows(here, 0, 37).to(dtype);
      test::expect_same_bits(quantized_linear(eye.cuda(), there).cpu().t().contiguous(), wanted, "unpacked");
      test::expect_same_bits(quantized_linear(eye.narrow(0, 3, 8).cuda(), there).cpu().t().contiguous(),
                             wanted.narrow(1, 3, 8).contiguous(), "a few rows");
    }
  }
}

TEST_P(QuantizedCudaOf, cuda_ARowHasTheSameBitsAmongAFewOthers) {
  LIMBECK_NEEDS_GPU();
  const auto there = on_gpu(quantize(values_of({45, 672}, at::kFloat, 13), GetParam()));
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const Tensor x = values_of({8, 672}, dtype, 14).cuda(), all = quantized_linear(x, there).cpu();
    for (const int64_t row : {0, 5})
      test::expect_same_bits(quantized_linear(x.narrow(0, row, 1), there).cpu(), all.narrow(0, row, 1), "a row");
    test::expect_same_bits(quantized_linear(x.narrow(0, 2, 5), there).cpu(), all.narrow(0, 2, 5), "five rows");
  }
}

TEST_P(QuantizedCudaOf, cuda_ReadsAnyStridesStartsAndEmptyBatches) {
  LIMBECK_NEEDS_GPU();
  const auto there = on_gpu(quantize(values_of({9, 64}, at::kFloat, 15), GetParam()));
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t count : {4, 10}) {
      const Tensor wide = values_of({count, 3 * 64}, dtype, 16).cuda(), flat = values_of({count * 64 + 1}, dtype, 17);
      for (const Tensor& x : {wide.slice(1, 64, 128), values_of({64, count}, dtype, 18).cuda().t(),
                              wide.slice(1, 0, 128, 2), flat.cuda().slice(0, 1).view({count, 64})}) {
        const Tensor dense = x.cpu().contiguous();
        const Tensor weight = dequantize_rows(there, 0, 9).cpu().to(dtype), zero = at::zeros({9});
        expect_product(quantized_linear(x, there), dense, weight.t(), zero, "strides");
      }
    }
  }
  const Tensor x = values_of({2, 5, 64}, at::kHalf, 19).cuda();
  EXPECT_EQ(quantized_linear(x, there).sizes(), at::IntArrayRef({2, 5, 9}));
  EXPECT_EQ(quantized_linear(x.slice(1, 0, 0), there).sizes(), at::IntArrayRef({2, 0, 9}));
  EXPECT_EQ(quantized_linear(x[0][0], there).sizes(), at::IntArrayRef({9}));
}

TEST_P(QuantizedCudaOf, cuda_EmptyWeightsGiveTheBiasNothingOrZeros) {
  LIMBECK_NEEDS_GPU();
  for (const int64_t count : {2, 20}) {
    const auto no_columns = on_gpu(quantize(at::empty({5, 0}), GetParam()));
    const auto no_rows = on_gpu(quantize(at::empty({0, 5}), GetParam()));
    const Tensor b = values_of({5}, at::kHalf, 20).cuda();
    const Tensor nothing = at::empty({count, 0}, b.options());
    test::expect_same_bits(quantized_linear(nothing, no_columns, b).cpu(), b.expand({count, 5}).cpu().contiguous(),
                           "bias");
    EXPECT_TRUE(at::equal(quantized_linear(nothing, no_columns).cpu(), at::zeros({count, 5}, at::kHalf)));
    const Tensor x = at::ones({count, 5}, b.options()).requires_grad_();
    const Tensor y = quantized_linear(x, no_rows);
    EXPECT_EQ(y.sizes(), at::IntArrayRef({count, 0}));
    const Tensor dx = torch::autograd::grad({y}, {x}, {at::empty_like(y)})[0];
    EXPECT_TRUE(at::equal(dx.cpu(), at::zeros({count, 5}, at::kHalf)));
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizedCudaOf, kFormats, [](const auto& instance) {
  std::string name = format_name(instance.param);
  std::erase(name, '-');
  return name;
});

TEST(QuantizedPlan, UnpacksRunsOf64RowsWithinItsBound) {
  EXPECT_EQ(unpacked_rows_at_once(4096, 4096, 2), 4096);
  EXPECT_EQ(unpacked_rows_at_once(14336, 4096, 2), 8192);
  EXPECT_EQ(unpacked_rows_at_once(14336, 14336, 2), 2304);
  EXPECT_EQ(unpacked_rows_at_once(5, int64_t{1} << 26, 2), 1);
  EXPECT_EQ(unpacked_rows_at_once(0, 0, 4), 1);
}

}  // namespace
}  // namespace limbeck::kernels
