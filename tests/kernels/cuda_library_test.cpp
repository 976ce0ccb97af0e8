#include "kernels/operator/cuda_library.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "kernels/norm/norm.h"

namespace limbeck::test {
namespace {

TEST(CudaLibrary, AvailabilityNeverThrowsAndAgreesWithAten) {
  const bool available = kernels::cuda_available();
  if (available) {
    EXPECT_TRUE(kernels::cuda_library_loaded());
  } else {
    EXPECT_FALSE(at::hasCUDA());
  }
}

TEST(CudaLibrary, LoadsOrSaysWhatToDo) {
  try {
    kernels::load_cuda_library();
    EXPECT_TRUE(kernels::cuda_library_loaded());
    kernels::load_cuda_library();  // a second call does nothing
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    EXPECT_NE(message.find("[cuda]"), std::string::npos) << message;
    EXPECT_NE(message.find("or use device cpu"), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace limbeck::test
