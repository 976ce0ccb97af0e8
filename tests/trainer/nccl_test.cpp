// NCCL between two GPUs of this machine: two ranks that are threads, each operation against the CPU's result, and the
// tree's bits against Gloo's.
#include "trainer/parallel/ranks/nccl.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <thread>

#include "kernels/operator/cuda_library.h"
#include "modules/errors.h"
#include "tests/support/gloo_ranks.h"
#include "tests/support/temporary_folder.h"
#include "tests/trainer/communicator_cases.h"

namespace limbeck::parallel {
namespace {

constexpr int kRanks = 2;

std::string why_no_two_gpus() {
  if (!kernels::cuda_available()) return "no GPU can be used on this machine";
  const int found = c10::impl::VirtualGuardImpl(c10::kCUDA).deviceCount();
  return found >= kRanks ? "" : "wanted two GPUs, and this machine has " + std::to_string(found);
}

// Skips with the reason, or fails where LIMBECK_REQUIRE_GPU=1 says that there must be GPUs.
class NcclRanks : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string why = why_no_two_gpus();
    if (why.empty()) return;
    const char* required = std::getenv("LIMBECK_REQUIRE_GPU");
    if (required != nullptr && std::string(required) == "1") FAIL() << why;
    GTEST_SKIP() << why;
  }

  using Body = std::function<void(Communicator&, c10::Device)>;
  static void run(const Body& body, bool verify = false) {
    const auto thrown = test::run_gloo_ranks(kRanks, [&](std::unique_ptr<Communicator> gloo, const Meeting& meeting) {
      const int rank = gloo->rank();
      NcclOptions options{.device = rank, .first_timeout_s = 60, .timeout_s = 5, .verify_calls = verify};
      const auto ranks = make_nccl(std::move(gloo), meeting, options);
      body(*ranks, c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(rank)));
    });
    for (const std::string& message : thrown) EXPECT_EQ(message, "");
  }
};

// Runs without a GPU too: the library opens, and its factory says what is missing.
TEST(NcclLibrary, RefusesADeviceThatIsNotThere) {
  try {
    make_nccl(make_solo(), {}, {.device = 97});
    FAIL();
  } catch (const DistributedError& error) {
    EXPECT_NE(std::string(error.what()).find("cuda:97"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("check CUDA_VISIBLE_DEVICES"), std::string::npos) << error.what();
  }
}

TEST_F(NcclRanks, EveryOperationGivesWhatTheCpuGives) {
  run([](Communicator& ranks, c10::Device device) {
    EXPECT_EQ(test::wrong_operation(ranks, device), "");
    const auto other = ranks.line("another");
    EXPECT_EQ(test::wrong_operation(*other, device), "");
    ranks.settle();
    EXPECT_EQ(test::wrong_operation(ranks, device), "");
    // The watch adds up the times of what has ended.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (ranks.time().running_s == 0 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    EXPECT_GT(ranks.time().running_s, 0.0);
  });
}

TEST_F(NcclRanks, ControlGoesOnByGloo) {
  run([](Communicator& ranks, c10::Device) {
    std::vector<int64_t> values{ranks.rank() + 1};
    ranks.all_reduce(values, Reduce::kMax);
    EXPECT_EQ(values, std::vector<int64_t>{kRanks});
    EXPECT_EQ(ranks.all_gather(std::to_string(ranks.rank())), (std::vector<std::string>{"0", "1"}));
  });
}

TEST_F(NcclRanks, TheTreeHasTheBitsOfGloos) {
  const std::vector<at::Tensor> leaves = test::uneven_leaves(8, 4096);
  at::Tensor by_gloo;
  for (const std::string& message :
       test::run_gloo_ranks(kRanks, [&](std::unique_ptr<Communicator> ranks, const Meeting&) {
         const at::Tensor sum = test::tree_sum(*ranks, leaves, at::kCPU);
         if (ranks->rank() == 0) by_gloo = sum;
       })) {
    EXPECT_EQ(message, "");
  }
  run([&](Communicator& ranks, c10::Device device) {
    EXPECT_TRUE(at::equal(test::tree_sum(ranks, leaves, device), by_gloo));
  });
}

TEST_F(NcclRanks, OperationsMayOverlapAndWaitInAnyOrder) {
  run([](Communicator& ranks, c10::Device device) {
    const auto options = at::TensorOptions().dtype(at::kFloat).device(device);
    std::vector<at::Tensor> sums;
    std::vector<std::shared_ptr<Pending>> pending;
    for (int i = 0; i < 16; ++i) {
      sums.push_back(at::full({1 << 16}, i + ranks.rank(), options));
      pending.push_back(ranks.all_reduce(sums.back(), i % 2 == 0 ? Order::kFast : Order::kTree, "test"));
    }
    for (int i = 15; i >= 0; --i) {
      pending[static_cast<size_t>(i)]->wait();
      EXPECT_TRUE(sums[static_cast<size_t>(i)].eq(2 * i + 1).all().item<bool>());
    }
  });
}

TEST_F(NcclRanks, TheHostGoesOnBeforeAnOperationEnds) {
  std::promise<void> went_on;
  run([&](Communicator& ranks, c10::Device device) {
    const at::Tensor sum = at::ones({64}, at::TensorOptions().device(device));
    ranks.all_reduce(sum, Order::kFast, "the first")->wait();  // makes the connection, which waits for both
    if (ranks.rank() == 1) {
      ASSERT_EQ(went_on.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
    }
    const auto pending = ranks.all_reduce(sum, Order::kFast, "the second");
    pending->wait();
    if (ranks.rank() == 0) went_on.set_value();
    EXPECT_TRUE(sum.eq(4).all().item<bool>());
    ranks.confirm();
  });
}

// On the fake device alone: what a GPU would read there depends on who is quicker.
TEST_F(NcclRanks, ReadingWithoutAWaitIsFoundByTheFakeDevice) {
  if (std::getenv("LIMBECK_FAKE_CUDA_DEVICES") == nullptr) GTEST_SKIP() << "on a GPU nothing would see it";
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(run([](Communicator& ranks, c10::Device device) {
                 const at::Tensor sum = at::ones({64}, at::TensorOptions().device(device));
                 const auto pending = ranks.all_reduce(sum, Order::kFast, "the gradient");
                 std::this_thread::sleep_for(std::chrono::seconds(1));  // done long since, and nobody has waited
                 sum.add_(1);
                 pending->wait();
               }),
               "block of [0-9]+ bytes that all_reduce on stream [0-9]+ writes, and has not waited for it");
}

// Where the message says that the last operations are.
std::filesystem::path named_trace(const std::string& message) {
  const std::string before = "the last operations are in ";
  const size_t found = message.find(before);
  if (found == std::string::npos) return {};
  const size_t begin = found + before.size();
  return message.substr(begin, message.find(';', begin) - begin);
}

TEST_F(NcclRanks, ARankThatNeverComesIsNamed) {
  const auto thrown = test::run_gloo_ranks(kRanks, [](std::unique_ptr<Communicator> gloo, const Meeting& meeting) {
    const int rank = gloo->rank();
    const auto ranks = make_nccl(std::move(gloo), meeting, {.device = rank, .first_timeout_s = 30, .timeout_s = 3});
    const c10::Device device(c10::kCUDA, static_cast<c10::DeviceIndex>(rank));
    EXPECT_EQ(test::wrong_operation(*ranks, device), "");
    ranks->settle();
    if (rank == 1) throw std::runtime_error("stays away");
    const at::Tensor sum = at::ones({64}, at::TensorOptions().device(device));
    ranks->all_reduce(sum, Order::kFast, "the gradient")->wait();
    sum.cpu();
    ranks->confirm();
  });
  EXPECT_NE(thrown[0].find("rank 1"), std::string::npos) << thrown[0];
  EXPECT_NE(thrown[0].find("all_reduce of the gradient"), std::string::npos) << thrown[0];
  // Without a run's folder in one that is new and ours alone.
  const std::filesystem::path trace = named_trace(thrown[0]), made = trace.parent_path();
  ASSERT_TRUE(std::filesystem::is_regular_file(trace)) << thrown[0];
  EXPECT_EQ(trace.filename(), "nccl-trace-rank0.json");
  ASSERT_NE(made, std::filesystem::temp_directory_path());
  EXPECT_EQ(std::filesystem::status(made).permissions(), std::filesystem::perms::owner_all);
  std::filesystem::remove_all(made);
}

TEST_F(NcclRanks, ARunThatEndsWellTakesAwayTheTracesOfAnEarlierFailure) {
  const test::TemporaryFolder folder;
  for (const char* name : {"nccl-trace-rank0.json", "nccl-trace-rank1.json", "metrics.jsonl"}) {
    std::ofstream(folder / name) << "{}";
  }
  for (const bool well : {false, true}) {
    test::run_gloo_ranks(kRanks, [&](std::unique_ptr<Communicator> gloo, const Meeting& meeting) {
      const int rank = gloo->rank();
      const auto ranks = make_nccl(std::move(gloo), meeting, {.device = rank, .folder = folder.path()});
      EXPECT_EQ(test::wrong_operation(*ranks, c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(rank))), "");
      if (!well) throw std::runtime_error("ends badly");
    });
    EXPECT_EQ(std::filesystem::exists(folder / "nccl-trace-rank0.json"), !well);
    EXPECT_EQ(std::filesystem::exists(folder / "nccl-trace-rank1.json"), !well);
  }
  EXPECT_TRUE(std::filesystem::exists(folder / "metrics.jsonl"));
}

// Control goes by Gloo: what fails there finds all of NCCL's own operations done.
TEST_F(NcclRanks, ARankThatFailsBetweenOperationsWaitsForNobody) {
  using Clock = std::chrono::steady_clock;
  std::promise<void> gone;
  Clock::time_point when;
  const auto thrown = test::run_gloo_ranks(kRanks, [&](std::unique_ptr<Communicator> gloo, const Meeting& meeting) {
    const int rank = gloo->rank();
    try {
      const auto ranks = make_nccl(std::move(gloo), meeting, {.device = rank, .first_timeout_s = 60, .timeout_s = 60});
      const c10::Device device(c10::kCUDA, static_cast<c10::DeviceIndex>(rank));
      EXPECT_EQ(test::wrong_operation(*ranks, device), "");
      if (rank == 1) {  // it lives, and does not leave: as one that stands still
        gone.get_future().wait();
        throw std::runtime_error("stood still");
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(500));  // the watch has seen that all is done
      when = Clock::now();
      throw DistributedError("no answer to control");
    } catch (const DistributedError&) {
      EXPECT_LT(Clock::now() - when, std::chrono::seconds(3));
      gone.set_value();
      throw;
    }
  });
  EXPECT_EQ(thrown[0], "no answer to control");
}

TEST_F(NcclRanks, CallsThatDifferAreRefusedWhereTheyAreVerified) {
  const auto thrown = test::run_gloo_ranks(kRanks, [](std::unique_ptr<Communicator> gloo, const Meeting& meeting) {
    const int rank = gloo->rank();
    const auto ranks = make_nccl(std::move(gloo), meeting, {.device = rank, .verify_calls = true});
    const c10::Device device(c10::kCUDA, static_cast<c10::DeviceIndex>(rank));
    ranks->all_reduce(at::ones({64 + rank}, at::TensorOptions().device(device)), Order::kFast, "x")->wait();
  });
  for (const std::string& message : thrown) {
    EXPECT_NE(message.find("ranks ask for different operations"), std::string::npos) << message;
  }
}

TEST_F(NcclRanks, TwoRanksOnOneGpuAreRefused) {
  const auto thrown = test::run_gloo_ranks(kRanks, [](std::unique_ptr<Communicator> gloo, const Meeting& meeting) {
    make_nccl(std::move(gloo), meeting, {.device = 0});
  });
  for (const std::string& message : thrown) {
    EXPECT_NE(message.find("ranks 0 and 1 are both on"), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace limbeck::parallel
