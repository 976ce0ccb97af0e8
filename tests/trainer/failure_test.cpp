#include "modules/failure.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <new>

#include "modules/errors.h"

namespace limbeck {
namespace {

template <class Thrower>
Failure failure_of(Thrower&& thrower) {
  try {
    thrower();
  } catch (...) {
    return describe_failure(std::current_exception());
  }
  return {-1, "nothing was thrown", ""};
}

TEST(Failure, OurErrorsKeepTheirCodeAndMessage) {
  const auto usage = failure_of([] { throw UsageError("my.ini:3: x"); });
  EXPECT_EQ(usage.exit_code, 2);
  EXPECT_EQ(usage.message, "my.ini:3: x");
  EXPECT_EQ(failure_of([] { throw InputDataError("x"); }).exit_code, 3);
  EXPECT_EQ(failure_of([] { throw WeightsError("x"); }).exit_code, 4);
  EXPECT_EQ(failure_of([] { throw NumericError("x"); }).exit_code, 5);
  EXPECT_EQ(failure_of([] { throw IoError("x"); }).exit_code, 6);
  EXPECT_EQ(failure_of([] { throw Error(ExitCode::kStopped, "x"); }).exit_code, 75);
}

TEST(Failure, RunningOutOfMemoryIsOneLineWithAdvice) {
  const auto ours = failure_of([] { throw std::bad_alloc(); });
  EXPECT_EQ(ours.exit_code, 5);
  EXPECT_EQ(ours.message.rfind("out of memory; lower data.batch_size", 0), 0u) << ours.message;
  const auto kernel = failure_of([] {
    throw std::filesystem::filesystem_error("cannot get current path",
                                            std::make_error_code(std::errc::not_enough_memory));
  });
  EXPECT_EQ(kernel.exit_code, 5);
  EXPECT_EQ(kernel.message, ours.message);
  const auto torch = failure_of([] {
    TORCH_CHECK(false, "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\nBuy new RAM!");
  });
  EXPECT_EQ(torch.exit_code, 5);
  EXPECT_EQ(torch.message.find('\n'), std::string::npos);
  const auto device = failure_of([] { TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory"); });
  EXPECT_EQ(device.exit_code, 5);
}

TEST(Failure, AnErrorOfTorchLosesItsStackTraceAndKeepsItForTracing) {
  const auto failure = failure_of([] { TORCH_CHECK(false, "[linear] input float16,\n wanted float32"); });
  EXPECT_EQ(failure.exit_code, 1);
  EXPECT_EQ(failure.message.rfind("[linear] input float16, wanted float32 (a fault in limbeck", 0), 0u)
      << failure.message;
  EXPECT_EQ(failure.message.find("frame #"), std::string::npos);
  EXPECT_NE(failure.trace.find("[linear]"), std::string::npos);
}

TEST(Failure, TheOperatingSystemsRefusalsAreInputOutput) {
  const auto failure = failure_of([] { std::filesystem::create_directory("/proc/no/such"); });
  EXPECT_EQ(failure.exit_code, 6);
  EXPECT_NE(failure.message.find("/proc/no/such"), std::string::npos);
}

TEST(Failure, AThreadThatTheSystemRefusesNamesTheLimits) {
  const auto failure =
      failure_of([] { throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again)); });
  EXPECT_EQ(failure.exit_code, 5);
  EXPECT_EQ(
      failure.message,
      "a thread cannot be started (Resource temporarily unavailable): raise the limits (ulimit -v, ulimit -u), or "
      "lower --threads");
}

TEST(Failure, WhatNobodyForesawIsAFaultOfLimbeck) {
  EXPECT_EQ(failure_of([] { throw std::logic_error("x"); }).exit_code, 1);
  EXPECT_EQ(failure_of([] { throw 7; }).exit_code, 1);
}

}  // namespace
}  // namespace limbeck
