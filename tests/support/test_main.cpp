// Runs a binary's cases as gtest_main does, and ends without taking LibTorch's tables down, which is a third of what
// the process of a short suite takes; ctest starts one for each suite.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const int code = RUN_ALL_TESTS();
  std::cout.flush();
  std::fflush(nullptr);
  std::_Exit(code);
}
