// What ranks do with tensors by Gloo, held against the sum made in one place; and which GPUs ranks may have.
#include "trainer/parallel/communicator.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/support/gloo_ranks.h"
#include "tests/support/thread_ranks.h"
#include "tests/trainer/communicator_cases.h"
#include "trainer/parallel/ranks/nccl.h"
#include "trainer/parallel/ranks/same_call.h"

namespace limbeck::parallel {
namespace {

TEST(GlooRanks, EveryOperationGivesWhatOneProcessGives) {
  for (const int size : {2, 3, 4}) {
    const auto thrown = test::run_gloo_ranks(size, [](std::unique_ptr<Communicator> ranks, const Meeting&) {
      const auto name = ranks->line("another"), again = ranks->line("another");
      for (Communicator* line : {ranks.get(), name.get(), again.get()}) {
        const std::string wrong = test::wrong_operation(*line, at::kCPU);
        EXPECT_EQ(wrong, "");
      }
    });
    for (const std::string& message : thrown) EXPECT_EQ(message, "");
  }
}

// Lines begin side by side, each on its own thread: c10d's record of operations used to end the process here.
TEST(GlooRanks, LinesBeginSideBySide) {
  for (int round = 0; round < 10; ++round) {
    const auto thrown = test::run_gloo_ranks(4, [](std::unique_ptr<Communicator> ranks, const Meeting&) {
      std::vector<int64_t> values{1};
      ranks->all_reduce(values, Reduce::kSum);
      EXPECT_EQ(values[0], 4);
    });
    for (const std::string& message : thrown) EXPECT_EQ(message, "");
  }
}

TEST(GlooRanks, TheTreeIsTheSameOverOneTwoAndFourRanks) {
  // Eight leaves, summed by pairs: what a rank sums itself and what the ranks sum together is one tree.
  const std::vector<at::Tensor> leaves = test::uneven_leaves(8, 1024);
  std::vector<at::Tensor> wanted = leaves;
  for (; wanted.size() > 1; wanted.resize(wanted.size() / 2)) {
    for (size_t i = 0; i < wanted.size() / 2; ++i) wanted[i] = wanted[2 * i] + wanted[2 * i + 1];
  }
  for (const int size : {2, 4, 8}) {
    const auto thrown = test::run_gloo_ranks(size, [&](std::unique_ptr<Communicator> ranks, const Meeting&) {
      const at::Tensor sum = test::tree_sum(*ranks, leaves, at::kCPU);
      EXPECT_TRUE(at::equal(sum, wanted[0])) << size << " ranks";
    });
    for (const std::string& message : thrown) EXPECT_EQ(message, "");
  }
}

TEST(Ranks, TwoOnOneGpuAreRefused) {
  const auto thrown = test::run_ranks(3, [](Communicator& ranks) {
    refuse_shared_gpu(ranks, ranks.rank() == 1 ? "host a, GPU 0000:3b:00.0" : "host a, GPU 0000:18:00.0");
  });
  for (const std::string& message : thrown) {
    EXPECT_EQ(message.find("ranks 0 and 2 are both on host a, GPU 0000:18:00.0: wanted a GPU for each rank"), 0u)
        << message;
    EXPECT_NE(message.find("--device=cuda"), std::string::npos) << message;
  }
  for (const std::string& message :
       test::run_ranks(3, [](Communicator& ranks) { refuse_shared_gpu(ranks, std::to_string(ranks.rank())); })) {
    EXPECT_EQ(message, "");
  }
}

TEST(Ranks, CallsThatDifferAreNamed) {
  EXPECT_NO_THROW(require_same_call({"a", "a"}, 0));
  try {
    require_same_call({"all_gather of x 4 Float", "all_gather of x 4 Float", "all_gather of x 8 Float"}, 1);
    FAIL();
  } catch (const std::exception& error) {
    EXPECT_NE(std::string(error.what()).find("rank 1 for all_gather of x 4 Float, rank 2 for all_gather of x 8 Float"),
              std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace limbeck::parallel
