#include "kernels/cpu/cpu_isa.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <string>

namespace limbeck::test {
namespace {

using kernels::CpuIsa;

// tests/kernels/CMakeLists.txt runs this under each of the switches.
TEST(CpuLoops, AreNoBetterThanTheSwitchesSay) {
  const auto switched = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  CpuIsa most = CpuIsa::kAmx;
  for (const std::string& value : {switched("LIMBECK_VECTOR"), switched("ATEN_CPU_CAPABILITY")}) {
    if (value == "baseline" || value == "default") most = CpuIsa::kBaseline;
    if (value == "avx2") most = std::min(most, CpuIsa::kAvx2);
    if (value == "avx512") most = std::min(most, CpuIsa::kAvx512);
    if (value == "avx512_vnni") most = std::min(most, CpuIsa::kAvx512Vnni);
    if (value == "avx512_bf16") most = std::min(most, CpuIsa::kAvx512Bf16);
  }
  EXPECT_LE(kernels::cpu_isa(), std::min(most, CpuIsa::kAvx512));
  EXPECT_LE(kernels::product_isa(), most);
  EXPECT_GE(kernels::product_isa(), kernels::cpu_isa());
}

}  // namespace
}  // namespace limbeck::test
