// quantized_linear of a matrix for which rows of x are codes too: int8-dynamic, int4-sym-dynamic, int4-sym-g32-dynamic.
#include "kernels/quantized/quantized_linear.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>

#include "kernels/operator/rounded_up.h"
#include "kernels/quantized/int4_dynamic_loops.h"
#include "kernels/quantized/int8_dynamic_loops.h"
#include "kernels/quantized/quantized_operands.h"

#include "tests/kernels/emulated_tiles.h"
#include "tests/support/operator_checks.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;

Tensor normal_values(at::IntArrayRef sizes, at::ScalarType dtype, uint64_t seed) {
  return test::random_tensor(sizes, at::TensorOptions().dtype(dtype), seed);
}

// Whole numbers from -least to most.
Tensor whole_numbers(at::IntArrayRef sizes, double least, double most, uint64_t seed) {
  return (normal_values(sizes, at::kFloat, seed) * 60).round().clamp(least, most);
}

QuantizedMatrix int8_matrix(const Tensor& codes, const Tensor& scales) {
  return {QuantizedFormat::kInt8Dynamic, codes.size(0), codes.size(1), {codes.to(at::kChar), scales}};
}

struct Int8Shape {
  int64_t m, n, k;
};
const auto kShapes = ::testing::Values(
    Int8Shape{1, 512, 1024}, Int8Shape{16, 512, 1024}, Int8Shape{17, 512, 1024}, Int8Shape{1, 1024, 512},
    Int8Shape{16, 1024, 512}, Int8Shape{17, 1024, 512}, Int8Shape{1, 90, 100}, Int8Shape{16, 90, 100},
    Int8Shape{17, 90, 100}, Int8Shape{1, 90, 130}, Int8Shape{16, 90, 130}, Int8Shape{17, 90, 130}, Int8Shape{1, 1, 1},
    Int8Shape{3, 5, 7}, Int8Shape{131, 200, 1030}, Int8Shape{9, 33, 4096});

class Int8DynamicLinearSums : public ::testing::TestWithParam<Int8Shape> {};

// Rows of x with 127.5 in them have a scale of 1, so that y is the sum itself, which float32 holds up to 2^24.
TEST_P(Int8DynamicLinearSums, AreThoseOfIntegersExactly) {
  const auto [m, n, k] = GetParam();
  const auto codes = whole_numbers({n, k}, -128, 127, 1);
  auto x = whole_numbers({m, k}, -128, 127, 2);
  x.select(1, k / 2).fill_(-128);
  const auto wanted = x.to(at::kLong).mm(codes.to(at::kLong).t());
  x.masked_fill_(x == -128, -127.5);  // whose code is -128
  ASSERT_LE(wanted.abs().max().item<int64_t>(), 1 << 24);
  const auto y = quantized_linear(x, int8_matrix(codes, at::ones({n})));
  EXPECT_TRUE(at::equal(y.to(at::kLong), wanted));
}

TEST_P(Int8DynamicLinearSums, OfTheLargestCodesDoNotOverflow) {
  const auto [m, n, k] = GetParam();
  for (const double sign : {1.0, -1.0}) {
    const auto y = quantized_linear(at::full({m, k}, 127.5 * sign), int8_matrix(at::full({n, k}, -128), at::ones({n})));
    const double code = sign > 0 ? 127 : -128;
    EXPECT_TRUE(at::equal(y, at::full({m, n}, -128 * code * static_cast<double>(k))));
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Int8DynamicLinearSums, kShapes);

class Int8DynamicLinearValues : public ::testing::TestWithParam<std::tuple<at::ScalarType, Int8Shape, bool>> {};

TEST_P(Int8DynamicLinearValues, AreThoseOfTheFormulaInFloat64) {
  const auto [dtype, shape, with_bias] = GetParam();
  const auto weight = quantize(normal_values({shape.n, shape.k}, at::kFloat, 1), QuantizedFormat::kInt8Dynamic);
  const auto x = normal_values({shape.m, shape.k}, dtype, 2), b = normal_values({shape.n}, dtype, 3);
  const auto y = quantized_linear(x, weight, with_bias ? std::optional<Tensor>(b) : std::nullopt);
  ASSERT_EQ(y.scalar_type(), dtype);

  const auto wide = x.to(at::kFloat), scale = wide.abs().amax(1, true) / 127.5;
  const auto codes = (wide / scale).round().clamp(-128, 127).to(at::kDouble);  // at::round is to nearest even
  const auto sums = codes.mm(weight.parts[0].to(at::kDouble).t());
  const auto product = sums * scale.to(at::kDouble) * weight.parts[1].to(at::kDouble);
  const auto bias = with_bias ? b.to(at::kDouble) : at::zeros({shape.n}, at::kDouble);
  const auto exact = product + bias;
  // Of the sum, two products and the bias, each half a float32 ulp; then once to the dtype.
  const double half_ulp = dtype == at::kHalf ? 0x1p-11 : dtype == at::kBFloat16 ? 0x1p-8 : 0x1p-24;
  const auto allowed = exact.abs() * half_ulp + product.abs() * 0x1p-22 + exact.abs() * 0x1p-24 + 0x1p-25;
  const auto error = (y.to(at::kDouble) - exact).abs();
  EXPECT_TRUE((error <= allowed).all().item<bool>()) << (error / allowed).max().item<double>();

  // And what it stands for: half a step of x by each weight.
  const auto w = dequantize_rows(weight, 0, shape.n).to(at::kDouble), of_x = x.to(at::kDouble).mm(w.t()) + bias;
  const auto step = scale.to(at::kDouble) * w.abs().sum(1).unsqueeze(0) / 2;
  EXPECT_TRUE(((y.to(at::kDouble) - of_x).abs() <= step * (1 + 1e-6) + allowed).all().item<bool>());
}

TEST_P(Int8DynamicLinearValues, HaveTheGradientsOfTheUnroundedProduct) {
  const auto [dtype, shape, with_bias] = GetParam();
  const auto weight = quantize(normal_values({shape.n, shape.k}, at::kFloat, 1), QuantizedFormat::kInt8Dynamic);
  auto x = normal_values({shape.m, shape.k}, dtype, 2).requires_grad_();
  auto b = normal_values({shape.n}, dtype, 3).requires_grad_();
  const auto dy = normal_values({shape.m, shape.n}, dtype, 4);
  const auto bias = with_bias ? std::optional<Tensor>(b) : std::nullopt;
  const auto inputs = with_bias ? std::vector<Tensor>{x, b} : std::vector<Tensor>{x};
  const auto ours = torch::autograd::grad({quantized_linear(x, weight, bias)}, inputs, {dy});
  QuantizedMatrix plain = weight;
  plain.format = QuantizedFormat::kInt8;
  const auto wanted = torch::autograd::grad({quantized_linear(x, plain, bias)}, inputs, {dy});
  for (size_t i = 0; i < inputs.size(); ++i) test::expect_same_bits(ours[i], wanted[i], i == 0 ? "dx" : "dbias");
}

INSTANTIATE_TEST_SUITE_P(All, Int8DynamicLinearValues,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16, at::kHalf), kShapes,
                                            ::testing::Bool()));

class Int4DynamicLinear : public ::testing::TestWithParam<std::tuple<const char*, at::ScalarType, Int8Shape, bool>> {};

TEST_P(Int4DynamicLinear, ValuesAreThoseOfTheFormulaAndGradientsThoseOfTheUnroundedProduct) {
  const auto [name, dtype, shape, with_bias] = GetParam();
  const auto weight = quantize(normal_values({shape.n, shape.k}, at::kFloat, 1), format_named(name));
  auto x = normal_values({shape.m, shape.k}, dtype, 2).requires_grad_();
  const auto b = normal_values({shape.n}, dtype, 3);
  const auto optional = with_bias ? std::optional<Tensor>(b) : std::nullopt;
  const auto y = quantized_linear(x, weight, optional);
  ASSERT_EQ(y.scalar_type(), dtype);

  const auto wide = x.detach().to(at::kFloat), scale = wide.abs().amax(1, true) / 127.5;
  const auto codes = (wide / scale).round().clamp(-128, 127).to(at::kDouble) * scale.to(at::kDouble);
  const auto w = dequantize_rows(weight, 0, shape.n).to(at::kDouble);
  const auto bias = with_bias ? b.to(at::kDouble) : at::zeros({shape.n}, at::kDouble);
  const auto exact = codes.mm(w.t()) + bias, absolute = codes.abs().mm(w.abs().t()) + bias.abs();
  // Sums of groups are exact; then a float32 product and sum a group, two for the scale of x and the bias, one dtype.
  const double half_ulp = dtype == at::kHalf ? 0x1p-11 : dtype == at::kBFloat16 ? 0x1p-8 : 0x1p-24;
  const auto groups = static_cast<double>(weight.parts[1].size(1));
  const auto allowed = exact.abs() * half_ulp + absolute * (groups + 4) * 0x1p-24 + 0x1p-25;
  const auto error = (y.detach().to(at::kDouble) - exact).abs();
  EXPECT_TRUE((error <= allowed).all().item<bool>()) << (error / allowed).max().item<double>();

  QuantizedMatrix plain = weight;
  plain.format.dynamic = false;
  const auto dy = normal_values({shape.m, shape.n}, dtype, 4);
  const auto gradient = [&](const Tensor& of) { return torch::autograd::grad({of}, {x}, {dy})[0]; };
  test::expect_same_bits(gradient(y), gradient(quantized_linear(x, plain, optional)), "dx");
}

INSTANTIATE_TEST_SUITE_P(All, Int4DynamicLinear,
                         ::testing::Combine(::testing::Values("int4-sym-dynamic", "int4-sym-g32-dynamic"),
                                            ::testing::Values(at::kFloat, at::kBFloat16, at::kHalf), kShapes,
                                            ::testing::Bool()));

// Codes of 0 and 15, eight below and seven above the middle, by the largest codes of x: pairs in 16 bits hold them.
TEST(Int4DynamicLinear, TheLargestCodesDoNotOverflow) {
  for (const char* name : {"int4-sym-dynamic", "int4-sym-g32-dynamic"}) {
    for (const double of_x : {127.5, -127.5}) {
      for (const int64_t code : {0, 15}) {
        auto weight = quantize(at::ones({17, 1030}), format_named(name));
        weight.parts[0].fill_(code == 15 ? -1 : 0);  // eight codes in a word
        weight.parts[1].fill_(1.0);
        const double wanted = static_cast<double>(code - 8) * (of_x > 0 ? 127 : -128) * 1030;
        EXPECT_TRUE(at::equal(quantized_linear(at::full({5, 1030}, of_x), weight), at::full({5, 17}, wanted))) << name;
      }
    }
  }
}

// To the bit: group g in chain g modulo 16, then the chains one after the other, all in float32.
TEST(Int4DynamicLinear, SumsOfGroupsAreAddedUpInSixteenChains) {
  constexpr int64_t kRows = 21, kColumns = 4200, kChains = 16;
  for (const char* name : {"int4-sym-dynamic", "int4-sym-g32-dynamic"}) {
    const auto weight = quantize(normal_values({kRows, kColumns}, at::kFloat, 1), format_named(name));
    const QuantizedView view = view_of(weight);
    for (const int64_t m : {1, 17}) {
      const auto x = normal_values({m, kColumns}, at::kFloat, 2);
      const auto scales = x.abs().amax(1) / 127.5;
      const auto codes = (x / scales.unsqueeze(1)).round().clamp(-128, 127).to(at::kInt);
      auto wanted = at::empty({m, kRows});
      for (int64_t row = 0; row < m; ++row) {
        const int32_t* of_x = codes.const_data_ptr<int32_t>() + row * kColumns;
        for (int64_t n = 0; n < kRows; ++n) {
          std::array<float, kChains> chains{};
          for (int64_t group = 0; group < groups_of(view); ++group) {
            const int64_t begin = group * view.format.group(), end = std::min(kColumns, begin + view.format.group());
            int32_t sum = 0;
            for (int64_t k = begin; k < end; ++k)
              sum += (static_cast<int32_t>(code_in_words(row_words(view, n), 1, 4, k)) - kMiddleCode) * of_x[k];
            chains.at(static_cast<size_t>(group % kChains)) +=
                static_cast<float>(sum) * stored_scale(view, n * groups_of(view) + group);
          }
          const float sum = std::accumulate(chains.begin(), chains.end(), 0.0F);
          wanted.mutable_data_ptr<float>()[row * kRows + n] = sum * scales.const_data_ptr<float>()[row];
        }
      }
      test::expect_same_bits(quantized_linear(x, weight), wanted, name);
    }
  }
}

TEST(Int8DynamicLinear, HasTheSameBitsOnTwoThreadsAmongOtherRowsAndInInference) {
  const int threads = at::get_num_threads();
  for (const auto& [name, dtype] : {std::pair{"int8-dynamic", at::kFloat},
                                    {"int8-dynamic", at::kBFloat16},
                                    {"int8-dynamic", at::kHalf},
                                    {"int4-sym-dynamic", at::kFloat},
                                    {"int4-sym-g32-dynamic", at::kBFloat16}}) {
    const auto weight = quantize(normal_values({517, 700}, at::kFloat, 5), format_named(name), at::kBFloat16);
    const auto x = normal_values({131, 700}, dtype, 6), b = normal_values({517}, dtype, 7);
    at::set_num_threads(1);
    const auto alone = quantized_linear(x, weight, b);
    at::set_num_threads(2);
    test::expect_same_bits(quantized_linear(x, weight, b), alone, "threads");
    test::expect_same_bits(quantized_linear(x.slice(0, 40, 41), weight, b), alone.slice(0, 40, 41), "one row");
    test::expect_same_bits(quantized_linear(x.t().contiguous().t(), weight, b), alone, "strides");
    const c10::InferenceMode inference;
    test::expect_same_bits(quantized_linear(x, weight, b), alone, "inference");
    at::set_num_threads(threads);
  }
}

// With codes of x that are `extra` more apart than they are long; what no row or column has is NaN before.
Tensor int8_product(const Int8DynamicLoops& loops, const Tensor& x, const QuantizedMatrix& weight, int64_t extra = 0) {
  const int64_t m = x.size(0), n = weight.rows, k = weight.columns;
  const auto scales = at::empty({m}, at::kFloat), y = at::full({m, n}, NAN, at::kFloat);
  const auto codes = at::full({m, k + extra}, 99, at::kChar),
             scratch = at::empty({loops.scratch_bytes + 64}, at::kByte);
  for (int64_t row = 0; row < m; ++row) {
    loops.quantize_rows(Storage::kFloat32, x[row].const_data_ptr(), 1, k, kStepsOfDynamic,
                        codes[row].mutable_data_ptr<int8_t>(), scales[row].mutable_data_ptr<float>());
  }
  auto* bytes = scratch.mutable_data_ptr<uint8_t>();
  bytes += (64 - reinterpret_cast<uintptr_t>(bytes) % 64) % 64;
  loops.share({codes.const_data_ptr<int8_t>(), k + extra, scales.const_data_ptr<float>(), view_of(weight),
               Storage::kFloat32, y.mutable_data_ptr(), nullptr, m, n, k},
              0, m, 0, n, bytes);
  return y;
}

// On the loops of one instruction set; what no row or column has is NaN before.
Tensor product_on(CpuIsa isa, const Tensor& x, const QuantizedMatrix& weight) {
  const int64_t m = x.size(0), n = weight.rows, k = weight.columns;
  const auto scales = at::empty({m}, at::kFloat), y = at::full({m, n}, NAN, at::kFloat);
  const QuantizedView view = view_of(weight);
  if (weight.format.kind == CodeKind::kInt8) return int8_product(int8_dynamic_loops_for(isa), x, weight);
  // Any codes and sums will do: whoever reads them in other places, or what lies behind the last, has other bits.
  const int64_t stride = rounded_up_quotient(k, kArrangedCodes) * kArrangedCodes;
  const auto codes = at::constant_pad_nd((x * 60).clamp(-128, 127), {0, stride - k}, 77).to(at::kChar);
  const auto sums = codes.slice(1, 0, groups_of(view)).to(at::kInt).contiguous() * 30;
  scales.fill_(0.37);
  const auto& loops = int4_dynamic_loops_for(isa);
  const auto scratch = at::empty({loops.scratch_bytes + 64}, at::kByte);
  auto* bytes = scratch.mutable_data_ptr<uint8_t>();
  bytes += (64 - reinterpret_cast<uintptr_t>(bytes) % 64) % 64;
  loops.share({codes.const_data_ptr<int8_t>(), stride, scales.const_data_ptr<float>(), sums.const_data_ptr<int32_t>(),
               view, Storage::kFloat32, y.mutable_data_ptr(), nullptr, m, n, k},
              0, m, 0, n, bytes);
  return y;
}

#if defined(__x86_64__)
// Tiles whole and in part in every direction, rows that are packed once and in pieces, and fewer rows than a tile has.
TEST(Int8DynamicLinear, HasTheSameBitsInTilesOfAmx) {
  if (product_isa() < CpuIsa::kAvx512Vnni) GTEST_SKIP() << "the vectors beside the tiles are those of AVX512-VNNI";
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{16, 16, 64},
                                {17, 21, 64},
                                {32, 32, 128},
                                {33, 40, 130},
                                {70, 133, 200},
                                {64, 64, 4200},
                                {20, 80, 16500},
                                {15, 64, 64},
                                {40, 5, 640},
                                {48, 48, 33}}) {
    const auto weight = quantize(normal_values({n, k}, at::kFloat, 5), format_named("int8-dynamic"), at::kBFloat16);
    const auto x = normal_values({m, k}, at::kFloat, 6);
    const auto wanted = int8_product(int8_dynamic_loops_for(CpuIsa::kBaseline), x, weight);
    SCOPED_TRACE(c10::str(m, " rows, ", n, " columns, ", k, " deep"));
    test::expect_same_bits(int8_product(isa_emulated_amx::int8_dynamic_loops, x, weight), wanted, "y");
    test::expect_same_bits(int8_product(isa_emulated_amx::int8_dynamic_loops, x, weight, 64), wanted, "rows apart");
  }
}
#endif

TEST(Int8DynamicLinear, HasTheSameBitsOnEveryInstructionSet) {
  if (product_isa() == CpuIsa::kBaseline) GTEST_SKIP() << "this machine, or its switches, have the baseline alone";
  for (const char* name : {"int8-dynamic", "int4-sym-dynamic", "int4-sym-g32-dynamic"}) {
    for (const int64_t k : {1, 100, 130, 4200}) {
      for (const int64_t n : {1, 21}) {
        const auto weight = quantize(normal_values({n, k}, at::kFloat, 5), format_named(name), at::kBFloat16);
        for (const int64_t m : {1, 3, 17}) {
          const auto x = normal_values({m, k}, at::kFloat, 6);
          const auto wanted = product_on(CpuIsa::kBaseline, x, weight);
          for (const CpuIsa isa : {CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Vnni, CpuIsa::kAmx}) {
            if (isa > product_isa()) continue;
            SCOPED_TRACE(c10::str(name, " ", m, " rows of ", k, ", set ", static_cast<int>(isa)));
            test::expect_same_bits(product_on(isa, x, weight), wanted, "y");
          }
        }
      }
    }
  }
}

TEST(Int8DynamicLinear, RowsOfZeroAreTheBiasAndRowsThatAreNotFiniteAreNaN) {
  for (const auto format : {QuantizedFormat::kInt8Dynamic, format_named("int4-sym-g32-dynamic")}) {
    const auto weight = quantize(normal_values({40, 33}, at::kFloat, 5), format);
    auto x = normal_values({5, 33}, at::kFloat, 6);
    const auto b = normal_values({40}, at::kFloat, 7);
    const auto before = quantized_linear(x, weight, b);
    x[1].zero_();
    x[2][32] = std::numeric_limits<float>::infinity();
    x[3][0] = std::numeric_limits<float>::quiet_NaN();
    const auto y = quantized_linear(x, weight, b);
    test::expect_same_bits(y[1], b, "zeros");
    EXPECT_TRUE(y[2].isnan().all().item<bool>());
    EXPECT_TRUE(y[3].isnan().all().item<bool>());
    test::expect_same_bits(y[0], before[0], "the row before");
    test::expect_same_bits(y[4], before[4], "the row behind");
  }
}

// The scale of such a row is a denormal of few bits, by which codes beyond 127 would come out.
TEST(Int8DynamicLinear, TheLeastMagnitudesStayWithinTheCodes) {
  const auto x = at::full({1, 4}, 150 * std::numeric_limits<float>::denorm_min());
  const auto y = quantized_linear(x, int8_matrix(at::full({3, 4}, 100), at::full({3}, 1e38F)));
  EXPECT_TRUE((y > 0).all().item<bool>());
  EXPECT_TRUE((y <= 100 * 1e38F * 4 * x[0][0]).all().item<bool>());
}

TEST(Int8DynamicLinear, MetaAndEmptyBatchesHaveTheShapes) {
  const auto on_meta = at::TensorOptions().device(at::kMeta).dtype(at::kHalf);
  auto x = at::empty({2, 3, 4}, on_meta).requires_grad_();
  const auto y = quantized_linear(x, quantize(at::empty({5, 4}, on_meta), QuantizedFormat::kInt8Dynamic));
  EXPECT_EQ(y.sizes(), at::IntArrayRef({2, 3, 5}));
  EXPECT_EQ(y.scalar_type(), at::kHalf);
  EXPECT_EQ(torch::autograd::grad({y}, {x}, {at::empty_like(y)})[0].sizes(), x.sizes());
  const auto weight = quantize(normal_values({9, 64}, at::kFloat, 5), QuantizedFormat::kInt8Dynamic);
  EXPECT_EQ(quantized_linear(at::ones({2, 0, 64}), weight).sizes(), at::IntArrayRef({2, 0, 9}));
  EXPECT_EQ(quantized_linear(at::ones({64}), weight).sizes(), at::IntArrayRef({9}));
}

TEST(Int8DynamicLinear, RefusesOtherDtypesShapesAndTooManyColumns) {
  const auto message = [](const Tensor& x, const QuantizedMatrix& weight) -> std::string {
    try {
      quantized_linear(x, weight);
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    }
    return "accepted";
  };
  const auto names = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  const auto weight = quantize(normal_values({3, 4}, at::kFloat, 5), QuantizedFormat::kInt8Dynamic);
  EXPECT_TRUE(names(message(at::ones({2, 4}, at::kDouble), weight), "x is float64 [2, 4] on cpu, wanted"));
  EXPECT_TRUE(names(message(at::ones({2, 5}), weight), "wanted [..., 4] for a weight [3, 4]"));
  const int64_t wide = kMostInt8Columns + 1;
  EXPECT_TRUE(names(message(at::ones({1, wide}), int8_matrix(at::ones({1, wide}), at::ones({1}))),
                    "wanted at most 131071 columns"));
}

}  // namespace
}  // namespace limbeck::kernels
