// Lookups in a quantized matrix against the rows of the whole one, on both devices.
#include "kernels/quantized/quantized_rows.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "gpu_case.h"
#include "support/operator_checks.h"
#include "support/quantized_formats.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;

constexpr int64_t kTestRows = 37;

QuantizedMatrix drawn(int64_t columns, QuantizedFormat format, at::ScalarType scales = at::kFloat) {
  return quantize(test::random_tensor({kTestRows, columns}, at::TensorOptions().dtype(at::kFloat), 5), format, scales);
}

QuantizedMatrix moved_to_gpu(QuantizedMatrix matrix) {
  for (Tensor& part : matrix.parts) part = part.cuda();
  return matrix;
}

Tensor ids_of(at::IntArrayRef sizes) {
  return at::randint(0, kTestRows, sizes, at::detail::createCPUGenerator(3), at::TensorOptions().dtype(at::kLong));
}

template <class Call>
std::string refusal_of(const Call& call) {
  try {
    call();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "accepted";
}

class QuantizedRowsOf : public ::testing::TestWithParam<QuantizedFormat> {};

// 1, 31, 75, 300: rows that begin inside bytes, groups and blocks.
constexpr std::array<int64_t, 8> kWidths = {1, 31, 32, 64, 75, 96, 128, 300};

TEST_P(QuantizedRowsOf, HaveTheBitsOfTheWholeMatrixRoundedOnce) {
  for (const int64_t columns : kWidths) {
    for (const auto scales : {at::kFloat, at::kBFloat16}) {
      const auto m = drawn(columns, GetParam(), scales);
      for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
        const Tensor whole = dequantize_rows(m, 0, kTestRows).to(dtype);
        for (const Tensor& ids : {ids_of({2, 5}), ids_of({1}), ids_of({0}), ids_of({3, 0}), ids_of({4, 6}).t()}) {
          const Tensor got = quantized_rows(ids, m, dtype);
          test::expect_same_bits(got, at::embedding(whole, ids), "rows");
          test::expect_same_bits(quantized_rows(ids.to(at::kInt), m, dtype), got, "int32 ids");
        }
        test::expect_same_bits(all_rows(m, dtype), whole, "all");
      }
    }
  }
}

TEST_P(QuantizedRowsOf, ThreadsDoNotMatter) {
  const auto m = drawn(300, GetParam());
  const Tensor ids = ids_of({700});
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const Tensor one = quantized_rows(ids, m, at::kBFloat16);
  at::set_num_threads(2);
  test::expect_same_bits(quantized_rows(ids, m, at::kBFloat16), one, "two threads");
  at::set_num_threads(threads);
}

TEST_P(QuantizedRowsOf, MetaHasTheSameShapes) {
  auto m = drawn(75, GetParam());
  for (Tensor& part : m.parts) part = part.to(at::kMeta);
  const Tensor got =
      quantized_rows(at::empty({2, 3}, at::TensorOptions().dtype(at::kLong).device(at::kMeta)), m, at::kHalf);
  EXPECT_TRUE(got.is_meta());
  EXPECT_EQ(got.sizes(), at::IntArrayRef({2, 3, 75}));
  EXPECT_EQ(got.scalar_type(), at::kHalf);
}

TEST_P(QuantizedRowsOf, GiveNoGradient) {
  const Tensor got = quantized_rows(ids_of({4}), drawn(64, GetParam()), at::kFloat);
  EXPECT_FALSE(got.requires_grad());
  EXPECT_NE(refusal_of([&] { got.sum().backward(); }).find("does not require grad"), std::string::npos);
}

TEST_P(QuantizedRowsOf, cuda_HaveTheBitsOfTheCpu) {
  LIMBECK_NEEDS_GPU();
  for (const int64_t columns : kWidths) {
    const auto here = drawn(columns, GetParam()), there = moved_to_gpu(here);
    for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      for (const Tensor& ids : {ids_of({2, 5}), ids_of({0}), ids_of({4, 6}).t()}) {
        test::expect_same_bits(quantized_rows(ids.cuda(), there, dtype).cpu(), quantized_rows(ids, here, dtype),
                               "rows");
        test::expect_same_bits(quantized_rows(ids.to(at::kInt).cuda(), there, dtype).cpu(),
                               quantized_rows(ids, here, dtype), "int32 ids");
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizedRowsOf, ::testing::ValuesIn(test::every_format()),
                         [](const auto& instance) { return test::format_label(instance.param); });

TEST(QuantizedRows, RefuseIdsThatAreNoRowAsTheFloatEmbeddingDoes) {
  const auto m = drawn(8, QuantizedFormat::kInt8);
  for (const int64_t id : {int64_t{-1}, kTestRows}) {
    const Tensor ids = at::full({2}, id, at::TensorOptions().dtype(at::kLong));
    EXPECT_THROW(at::embedding(dequantize_rows(m, 0, kTestRows), ids), c10::IndexError);
    EXPECT_THROW(quantized_rows(ids, m, at::kFloat), c10::IndexError);
    const std::string said = refusal_of([&] { quantized_rows(ids, m, at::kFloat); });
    EXPECT_NE(said.find("id " + std::to_string(id) + " is out of range, wanted 0 to 36"), std::string::npos) << said;
  }
}

TEST(QuantizedRows, RefuseOtherDtypesAndParts) {
  const auto m = drawn(8, QuantizedFormat::kInt8);
  const Tensor ids = ids_of({3});
  EXPECT_NE(refusal_of([&] { quantized_rows(ids.to(at::kFloat), m, at::kFloat); }).find("wanted int64 or int32"),
            std::string::npos);
  EXPECT_NE(refusal_of([&] { quantized_rows(ids, m, at::kDouble); }).find("wanted float32, bfloat16 or float16"),
            std::string::npos);
  auto cut = m;
  cut.parts.pop_back();
  EXPECT_NE(refusal_of([&] { quantized_rows(ids, cut, at::kFloat); }).find("came with 1 parts, wanted 2"),
            std::string::npos);
}

}  // namespace
}  // namespace limbeck::kernels
