// Formats, parts and refusals of quantized matrices. Values are held against Python's formulas and bitsandbytes in
// tests/python/test_quantized_ops.py.
#include "kernels/quantized/quantized_matrix.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <limits>

#include "kernels/quantized/fitted_range.h"
#include "kernels/quantized/quantized_operands.h"
#include "tests/support/operator_checks.h"
#include "tests/support/quantized_formats.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;

Tensor drawn_matrix(int64_t rows, int64_t columns, at::ScalarType dtype = at::kFloat) {
  return test::random_tensor({rows, columns}, at::TensorOptions().dtype(dtype), 11);
}

std::string refused(const std::function<void()>& call) {
  try {
    call();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "accepted";
}

int64_t bytes_of(const QuantizedMatrix& m) {
  int64_t bytes = 0;
  for (const Tensor& part : m.parts) bytes += static_cast<int64_t>(part.nbytes());
  return bytes;
}

class QuantizedMatrixOf : public ::testing::TestWithParam<QuantizedFormat> {};

TEST_P(QuantizedMatrixOf, StaysWithinHalfAStepOfTheWeight) {
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{1, 1}, {3, 5}, {7, 129}, {64, 64}, {33, 300}}) {
    const Tensor w = drawn_matrix(rows, columns), back = dequantize_rows(quantize(w, GetParam()), 0, rows);
    // Half the widest step between neighbouring codes, in units of the largest value: 1/127, (max - min) / 15 or max
    // / 7.5 (of 3 bits 7 and 3.5, of 2 bits 3 and 1.5), the gap of 0.304 between the lowest two levels; and what 8-bit
    // scales may be off, at most 1.5 % of the largest.
    const double step = GetParam().kind == CodeKind::kInt8   ? 0.5 / 127
                        : GetParam().kind == CodeKind::kInt4 ? 1.0 / GetParam().last_code()
                        : GetParam().double_scales           ? 0.152 + 0.015
                                                             : 0.152;
    EXPECT_LE((back - w).abs().max().item<double>(), 1.0001 * step * w.abs().max().item<double>()) << rows;
  }
}

TEST_P(QuantizedMatrixOf, AnyRowsAreThoseOfTheWhole) {
  const auto m = quantize(drawn_matrix(37, 75), GetParam());  // 75: rows begin inside bytes and blocks
  const Tensor whole = dequantize_rows(m, 0, 37);
  for (const auto& [row, count] : {std::pair<int64_t, int64_t>{0, 1}, {1, 1}, {5, 20}, {36, 1}, {12, 0}})
    test::expect_same_bits(dequantize_rows(m, row, count), whole.narrow(0, row, count), "rows");
}

TEST_P(QuantizedMatrixOf, ThreadsDoNotMatter) {
  const Tensor w = drawn_matrix(301, 4100);  // 19,000 blocks: more than one run of the mean of scales
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto one = quantize(w, GetParam());
  const Tensor values = dequantize_rows(one, 0, 301);
  at::set_num_threads(2);
  const auto two = quantize(w, GetParam());
  for (size_t i = 0; i < one.parts.size(); ++i) test::expect_same_bits(one.parts[i], two.parts[i], "part");
  test::expect_same_bits(values, dequantize_rows(two, 0, 301), "values");
  at::set_num_threads(threads);
}

TEST_P(QuantizedMatrixOf, MetaHasTheSameParts) {
  const Tensor w = drawn_matrix(9, 200);
  const auto real = quantize(w, GetParam());
  const auto meta = quantize(at::empty({9, 200}, w.options().device(at::kMeta)), GetParam());
  const auto wanted = parts_of(GetParam(), 9, 200);
  ASSERT_EQ(real.parts.size(), meta.parts.size());
  for (size_t i = 0; i < real.parts.size(); ++i) {
    EXPECT_TRUE(meta.parts[i].is_meta());
    EXPECT_EQ(meta.parts[i].sizes(), real.parts[i].sizes());
    EXPECT_EQ(meta.parts[i].scalar_type(), real.parts[i].scalar_type());
    EXPECT_EQ(real.parts[i].sizes(), at::IntArrayRef(wanted[i].shape));
  }
  EXPECT_EQ(dequantize_rows(meta, 2, 3).sizes(), at::IntArrayRef({3, 200}));
}

TEST_P(QuantizedMatrixOf, HalfTypesAreWidenedFirst) {
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    const Tensor w = drawn_matrix(6, 130, dtype);
    const auto narrow = quantize(w, GetParam()), wide = quantize(w.to(at::kFloat), GetParam());
    for (size_t i = 0; i < wide.parts.size(); ++i) test::expect_same_bits(narrow.parts[i], wide.parts[i], "part");
  }
}

// Magnitudes from one row to the next differ as far as float16 reaches, into its subnormal numbers.
TEST_P(QuantizedMatrixOf, ScalesOfHalfTypesAreRoundedBeforeTheCodes) {
  if (GetParam().kind == CodeKind::kNf4) return;  // float32 always
  const Tensor w = drawn_matrix(24, 130) * at::pow(2.0, at::arange(-20, 4, at::kFloat)).view({24, 1});
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    const auto m = quantize(w, GetParam(), dtype);
    EXPECT_EQ(m.scales(), dtype);
    QuantizedMatrix same = m;
    same.parts[1] = m.parts[1].to(at::kFloat);
    const Tensor back = dequantize_rows(m, 0, 24);
    test::expect_same_bits(back, dequantize_rows(same, 0, 24), "the scale that was stored is the one that is meant");
    const Tensor step = !GetParam().has_groups()
                            ? same.parts[1].view({24, 1}).expand({24, 130})
                            : same.parts[1].repeat_interleave(GetParam().group(), 1).narrow(1, 0, 130);
    EXPECT_TRUE(((back - w).abs() <= 0.5001 * step).all().item<bool>()) << c10::toString(dtype);
  }
}

TEST_P(QuantizedMatrixOf, ZerosAndConstantsAreExact) {
  const Tensor zeros = at::zeros({3, 130});
  EXPECT_TRUE(at::equal(dequantize_rows(quantize(zeros, GetParam()), 0, 3), zeros));
  if (GetParam().kind != CodeKind::kNf4) return;  // 127 (c / 127) is c but for a rounding
  const Tensor equal = at::full({4, 128}, 0.3);
  EXPECT_TRUE(at::equal(dequantize_rows(quantize(equal, GetParam()), 0, 4), equal));
}

TEST_P(QuantizedMatrixOf, EmptyMatricesHaveParts) {
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{0, 5}, {5, 0}}) {
    const auto m = quantize(at::empty({rows, columns}), GetParam());
    EXPECT_EQ(dequantize_rows(m, 0, rows).sizes(), at::IntArrayRef({rows, columns}));
  }
}

TEST_P(QuantizedMatrixOf, RefusesWhatNoCodeStandsFor) {
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    Tensor w = drawn_matrix(4, 70);
    w[2][69] = bad;
    EXPECT_NE(refused([&] { quantize(w, GetParam()); }).find("row 2 of float32 [4, 70]"), std::string::npos);
  }
  EXPECT_NE(refused([&] { quantize(at::ones({3}), GetParam()); }).find("[rows, columns]"), std::string::npos);
  EXPECT_NE(refused([&] {
              quantize(at::ones({3, 3}, at::kLong), GetParam());
            }).find("wanted float32"),
            std::string::npos);
}

TEST_P(QuantizedMatrixOf, RefusesPartsOfAnotherMatrix) {
  auto m = quantize(drawn_matrix(4, 70), GetParam());
  EXPECT_NE(refused([&] { dequantize_rows(m, 3, 2); }).find("rows 3 to 5 of 4"), std::string::npos);
  m.parts[1] = m.parts[1].to(at::kDouble);
  EXPECT_NE(refused([&] { dequantize_rows(m, 0, 1); }).find("is float64 ["), std::string::npos);
  m.parts.pop_back();
  EXPECT_NE(refused([&] { dequantize_rows(m, 0, 1); }).find("parts, wanted"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizedMatrixOf, ::testing::ValuesIn(test::every_format()),
                         [](const auto& instance) { return test::format_label(instance.param); });

TEST(QuantizedMatrix, CountsRealBytes) {
  const Tensor w = drawn_matrix(256, 512);  // 131072 values
  EXPECT_EQ(bytes_of(quantize(w, QuantizedFormat::kInt8)), 131072 + 256 * 4);
  EXPECT_EQ(bytes_of(quantize(w, QuantizedFormat::kInt8, at::kHalf)), 131072 + 256 * 2);
  EXPECT_EQ(bytes_of(quantize(w, QuantizedFormat::kInt4)), 65536 + 256 * 4 * 4 + 256 / 8 * 4 * 4);
  EXPECT_EQ(bytes_of(quantize(w, format_named("int4-sym-g32"), at::kBFloat16)), 65536 + 256 * 16 * 2);
  EXPECT_EQ(bytes_of(quantize(w, format_named("int3"))), 49152 + 256 * 4 * 4 + 256 / 32 * 3 * 4 * 4);
  EXPECT_EQ(bytes_of(quantize(w, format_named("int2-g64"), at::kHalf)), 32768 + 256 * 8 * 2 + 256 / 16 * 8 * 4);
  EXPECT_EQ(bytes_of(quantize(drawn_matrix(5, 100), format_named("int3-sym"))), 5 * 10 * 4 + 5 * 4);  // 300 bits a row
  EXPECT_EQ(bytes_of(quantize(w, QuantizedFormat::kNf4)), 65536 + 2048 * 4);
  EXPECT_EQ(bytes_of(quantize(w, QuantizedFormat::kNf4Double)), 65536 + 2048 + 8 * 4 + 4);
}

TEST(QuantizedMatrix, Int4RefusesARangeThatOverflows) {
  const Tensor w = at::full({2, 40}, 3e38);
  w[1][7] = -3e38;
  EXPECT_NE(refused([&] { quantize(w, QuantizedFormat::kInt4); }).find("scale overflows Float"), std::string::npos);
  w[1][7] = 3e38;
  EXPECT_EQ(refused([&] { quantize(w, QuantizedFormat::kInt4); }), "accepted");
}

TEST(QuantizedMatrix, TheRangeBehindScalesMakesThemAgain) {
  const Tensor w = drawn_matrix(24, 130);
  for (const char* name : {"int4", "int3", "int3-sym-g64", "int2-g32", "int2-sym"}) {
    for (const auto dtype : {at::kBFloat16, at::kHalf}) {
      const auto m = quantize(w, format_named(name), dtype);
      const auto again = quantize_learned({w, at::zeros_like(w), range_behind(m), m.format, dtype});
      for (size_t i = 0; i < m.parts.size(); ++i) test::expect_same_bits(again.parts[i], m.parts[i], name);
    }
  }
}

TEST(QuantizedMatrix, NamesAreRead) {
  for (const QuantizedFormat format : test::every_format()) EXPECT_EQ(format_named(format_name(format)), format);
  EXPECT_NE(refused([] { format_named("int5"); }).find("wanted one of int8, int8-g128, int8-g64"), std::string::npos);
}

}  // namespace
}  // namespace limbeck::kernels
