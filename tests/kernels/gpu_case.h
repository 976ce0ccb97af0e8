// For cases that need a GPU: loads the CUDA operators, else skips with the reason, or fails when LIMBECK_REQUIRE_GPU=1
// says that there must be one.
#pragma once
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "kernels/operator/cuda_library.h"

#define LIMBECK_NEEDS_GPU()                                                                       \
  if (!limbeck::kernels::cuda_available()) {                                                      \
    const char* required = std::getenv("LIMBECK_REQUIRE_GPU");                                    \
    if (required && std::string(required) == "1") FAIL() << "no GPU can be used on this machine"; \
    GTEST_SKIP() << "no GPU can be used on this machine";                                         \
  }
