#include "kernels/random/normal_values.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>

namespace limbeck::kernels {
namespace {

at::Tensor filled(int64_t count, uint64_t key, double deviation = 1.0, at::ScalarType dtype = at::kDouble) {
  const at::Tensor x = at::empty({count}, at::TensorOptions().dtype(dtype));
  fill_normal_(x, key, deviation);
  return x;
}

TEST(NormalValues, MomentsAndTailsAreNormal) {
  const int64_t count = 1 << 20;
  const at::Tensor x = filled(count, key_of(0, "a"));
  const double error = 1.0 / std::sqrt(static_cast<double>(count));  // bars at five standard errors
  EXPECT_NEAR(x.mean().item<double>(), 0.0, 5 * error);
  EXPECT_NEAR(x.square().mean().item<double>(), 1.0, 5 * error * std::sqrt(2.0));
  EXPECT_NEAR(x.pow(3).mean().item<double>(), 0.0, 5 * error * std::sqrt(15.0));
  EXPECT_NEAR(x.pow(4).mean().item<double>(), 3.0, 5 * error * std::sqrt(96.0));
  for (const double edge : {0.5, 1.0, 2.0, 3.0}) {
    const double share = std::erfc(edge / std::sqrt(2.0));
    EXPECT_NEAR(x.abs().gt(edge).to(at::kDouble).mean().item<double>(), share, 5 * error * std::sqrt(share)) << edge;
  }
}

TEST(NormalValues, NeighboursAndKeysAreIndependent) {
  const int64_t count = 1 << 18;
  const double bar = 5.0 / std::sqrt(static_cast<double>(count));
  const at::Tensor a = filled(count, key_of(0, "layers.0.weight"));
  EXPECT_NEAR((a.narrow(0, 0, count - 1) * a.narrow(0, 1, count - 1)).mean().item<double>(), 0.0, bar);
  for (const uint64_t other :
       {key_of(1, "layers.0.weight"), key_of(0, "layers.1.weight"), key_of(0, "layers.0.bias")}) {
    EXPECT_NEAR((a * filled(count, other)).mean().item<double>(), 0.0, bar);
  }
}

TEST(NormalValues, AnElementDependsOnKeyAndPlaceAlone) {
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const at::Tensor one = filled(100001, 7);
  at::set_num_threads(2);
  const at::Tensor two = filled(100001, 7);
  at::set_num_threads(threads);
  EXPECT_TRUE(one.equal(two));
  EXPECT_TRUE(filled(333, 7).equal(one.narrow(0, 0, 333)));
}

TEST(NormalValues, NarrowDtypesAreRoundedOnce) {
  const at::Tensor wide = filled(5000, 3, 0.02);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    // float64 to half goes by way of float32 in c10's types as in ATen's conversion.
    EXPECT_TRUE(filled(5000, 3, 0.02, dtype).equal(wide.to(dtype))) << dtype;
  }
}

TEST(NormalValues, OtherDevicesAndLayoutsAreRefused) {
  EXPECT_THROW(fill_normal_(at::empty({4, 4}).t().narrow(0, 0, 2), 1, 1.0), c10::Error);
  EXPECT_THROW(fill_normal_(at::empty({4}, at::kMeta), 1, 1.0), c10::Error);
  EXPECT_THROW(fill_normal_(at::empty({4}, at::kLong), 1, 1.0), c10::Error);
}

}  // namespace
}  // namespace limbeck::kernels
