// Operator tests run once for each pair of device and dtype. Without a GPU the CUDA cases are skipped, or fail where
// LIMBECK_REQUIRE_GPU=1 says that the machine has one.
#pragma once
#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <string>

#include "kernels/operator/cuda_library.h"

namespace limbeck::test {

struct DeviceDtype {
  at::DeviceType device;
  at::ScalarType dtype;
};

inline std::string name_of(const ::testing::TestParamInfo<DeviceDtype>& info) {
  std::string name = info.param.device == at::kCUDA ? "cuda_" : "cpu_";
  switch (info.param.dtype) {
    case at::kFloat:
      return name + "float32";
    case at::kBFloat16:
      return name + "bfloat16";
    case at::kHalf:
      return name + "float16";
    default:
      return name + "float64";
  }
}

class OperatorTest : public ::testing::TestWithParam<DeviceDtype> {
 protected:
  void SetUp() override {
    if (GetParam().device != at::kCUDA || kernels::cuda_available()) return;
    const char* required = std::getenv("LIMBECK_REQUIRE_GPU");
    if (required != nullptr && std::string(required) == "1") FAIL() << "LIMBECK_REQUIRE_GPU=1, but no GPU can be used";
    GTEST_SKIP() << "no GPU on this machine";
  }
  at::TensorOptions options() const { return at::TensorOptions().device(GetParam().device).dtype(GetParam().dtype); }
};

inline auto every_device_and_dtype() {
  return ::testing::Values(DeviceDtype{at::kCPU, at::kFloat}, DeviceDtype{at::kCPU, at::kBFloat16},
                           DeviceDtype{at::kCPU, at::kHalf}, DeviceDtype{at::kCPU, at::kDouble},
                           DeviceDtype{at::kCUDA, at::kFloat}, DeviceDtype{at::kCUDA, at::kBFloat16},
                           DeviceDtype{at::kCUDA, at::kHalf}, DeviceDtype{at::kCUDA, at::kDouble});
}

}  // namespace limbeck::test
