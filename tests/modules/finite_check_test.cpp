#include "modules/io/finite_check.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>

#include "modules/errors.h"

namespace limbeck::io {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(), kInfinity = std::numeric_limits<double>::infinity();

TEST(FirstNonfinite, FindsTheFirstOfSeveralAtEveryPlaceOfABlock) {
  for (const auto dtype : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16}) {
    at::Tensor values = at::linspace(-1000, 1000, 10000, at::kDouble).to(dtype);
    EXPECT_EQ(first_nonfinite(values), std::nullopt);
    for (const int64_t place : {9999, 4096, 4095, 17, 0}) {
      values[place] = place % 2 == 0 ? kNaN : -kInfinity;
      EXPECT_EQ(first_nonfinite(values), place);
    }
  }
}

TEST(FirstNonfinite, ExtremesOfEachDtypeAreFinite) {
  for (const double value : {65504.0, -65504.0, 6e-8, 0.0, -0.0}) {
    EXPECT_EQ(first_nonfinite(at::full({5}, value, at::kHalf)), std::nullopt) << value;
  }
  EXPECT_EQ(first_nonfinite(at::full({5}, 3.38e38, at::kBFloat16)), std::nullopt);
  EXPECT_EQ(first_nonfinite(at::full({5}, std::numeric_limits<float>::max(), at::kFloat)), std::nullopt);
  EXPECT_EQ(first_nonfinite(at::full({5}, std::numeric_limits<double>::denorm_min(), at::kDouble)), std::nullopt);
}

TEST(FirstNonfinite, AgreesWithIsfiniteOnEveryHalfAndByteFloat) {
  const at::Tensor bits16 = at::arange(-32768, 32768, at::kInt).to(at::kShort);
  for (const auto dtype : {at::kHalf, at::kBFloat16}) {
    for (const at::Tensor& element : bits16.view(dtype).split(1)) {
      ASSERT_EQ(first_nonfinite(element).has_value(), !at::isfinite(element.to(at::kFloat)).item<bool>());
    }
  }
  for (const auto dtype : {at::kFloat8_e4m3fn, at::kFloat8_e5m2}) {
    for (const at::Tensor& element : at::arange(256, at::kInt).to(at::kByte).view(dtype).split(1)) {
      ASSERT_EQ(first_nonfinite(element).has_value(), !at::isfinite(element.to(at::kFloat)).item<bool>());
    }
  }
}

TEST(FirstNonfinite, IndexOfStridedTensorsIsRowMajor) {
  at::Tensor values = at::zeros({5, 7});
  values[1][6] = kNaN;
  values[4][2] = kNaN;
  EXPECT_EQ(first_nonfinite(values), 13);
  EXPECT_EQ(first_nonfinite(values.t()), 2 * 5 + 4);
  EXPECT_EQ(first_nonfinite(values.select(1, 2)), 4);
  EXPECT_EQ(first_nonfinite(values.narrow(1, 3, 3)), std::nullopt);
}

TEST(FirstNonfinite, IntegersHoldNoneAndOddInputsAreRefused) {
  EXPECT_EQ(first_nonfinite(at::full({3}, -1, at::kShort)), std::nullopt);
  EXPECT_EQ(first_nonfinite(at::empty({0})), std::nullopt);
  EXPECT_THROW(first_nonfinite(at::ones({2}, at::kMeta)), ContractError);
  EXPECT_THROW(first_nonfinite(at::ones({2}, at::kComplexFloat)), ContractError);
}

}  // namespace
}  // namespace limbeck::io
