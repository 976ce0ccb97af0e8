// Runs a binary's cases as gtest_main does, and ends without taking LibTorch's tables down, which is a third of what
// the process of a short suite takes; ctest starts one for each suite. CUDA, where there is a GPU or must be one, is
// loaded before the first backward, as the program does it.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <string_view>

#include "kernels/operator/cuda_library.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const char* required = std::getenv("LIMBECK_REQUIRE_GPU");
  if (std::filesystem::exists("/dev/nvidiactl") || (required != nullptr && std::string_view(required) == "1")) {
    limbeck::kernels::cuda_available();
  }
  const int code = RUN_ALL_TESTS();
  std::cout.flush();
  std::fflush(nullptr);
  std::_Exit(code);
}
