// For cases that need a GPU: loads the CUDA half of libtorch when there is a device, else skips with the reason,
// or fails when LIMBECK_REQUIRE_GPU=1 says that there must be one.
#pragma once
#include <ATen/Context.h>
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

namespace limbeck::test {

inline std::string why_no_gpu() {
  if (!std::filesystem::exists("/dev/nvidiactl")) return "no NVIDIA device on this machine";
  static void* library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL);
  if (!library) return std::string("libtorch_cuda.so does not load: ") + dlerror();
  return at::globalContext().hasCUDA() ? "" : "libtorch finds no CUDA device";
}

}  // namespace limbeck::test

#define LIMBECK_NEEDS_GPU()                                                \
  if (const std::string why = limbeck::test::why_no_gpu(); !why.empty()) { \
    const char* required = std::getenv("LIMBECK_REQUIRE_GPU");             \
    if (required && std::string(required) == "1") FAIL() << why;           \
    GTEST_SKIP() << why;                                                   \
  }
