// Elementwise functions have the same bits on the first call of a process as on every later one.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

namespace limbeck::kernels {
namespace {

pid_t start_first_call() {
  const pid_t child = fork();
  if (child != 0) return child;
  setenv("OMP_WAIT_POLICY", "passive", 1);
  execl("/proc/self/exe", "kernels_test", "--gtest_brief=1", "--gtest_filter=VectorMath.FirstCallHasTheBitsOfTheSecond",
        nullptr);
  _exit(127);
}

// The race that this guards against is one of oneMKL (kernels/cpu/vector_math.cpp): one new process of 20 lost it.
TEST(VectorMath, FirstCallHasTheBitsOfTheSecondInNewProcesses) {
  int differ = 0;
  for (int round = 0; round < 20; ++round) {
    std::vector<pid_t> children(3);  // more than the cores of a small machine: threads are interrupted anywhere
    for (auto& child : children) child = start_first_call();
    for (const pid_t child : children) {
      int status = 0;
      ASSERT_EQ(waitpid(child, &status, 0), child);
      ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) <= 1);
      differ += WEXITSTATUS(status);
    }
  }
  EXPECT_EQ(differ, 0) << "of 60 processes";
}

TEST(VectorMath, FirstCallHasTheBitsOfTheSecond) {
  at::manual_seed(11);
  const auto q = at::randn({1, 390, 33}), k = at::randn({1, 390, 33});
  const auto scores = at::bmm(q, k.transpose(1, 2)).mul_(0.17);  // threads that have just been busy begin together
  const auto first = at::logsumexp(scores, -1), second = at::logsumexp(scores, -1);
  EXPECT_TRUE(at::equal(first, second));
}

}  // namespace
}  // namespace limbeck::kernels
