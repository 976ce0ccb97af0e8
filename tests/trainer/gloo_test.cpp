// Two ranks over real Gloo on the loopback, each on a thread: what they say when they part.
#include "trainer/parallel/ranks/gloo.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "modules/errors.h"
#include "tests/support/gloo_ranks.h"

namespace limbeck::parallel {
namespace {

using Body = std::function<void(Communicator&)>;

// Runs `body` on every rank; the messages of what they threw, by rank, "" where nothing.
std::vector<std::string> messages(const GlooOptions& options, const Body& body) {
  return test::run_gloo_ranks(options, [&](std::unique_ptr<Communicator> ranks, const Meeting&) {
    try {
      body(*ranks);
    } catch (const std::exception& error) {
      ranks->farewell(error.what());
      throw;
    }
  });
}

void expect_parts(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) EXPECT_NE(message.find(part), std::string::npos) << part << " in: " << message;
}

GlooOptions two(double timeout_s, bool verify) {
  GlooOptions options;
  options.size = 2;
  options.first_timeout_s = options.timeout_s = timeout_s;
  options.verify_calls = verify;
  return options;
}

TEST(Gloo, NamesBothRanksOfCallsThatDiffer) {
  struct Case {
    Body body;
    std::string first, second;
  };
  const std::vector<Case> cases = {
      {[](Communicator& r) { r.all_reduce(at::ones({4 + r.rank()}), Order::kFast, "student.layers.0")->wait(); },
       "all_reduce of student.layers.0 of 4 Float", "all_reduce of student.layers.0 of 5 Float"},
      {[](Communicator& r) {
         const auto dtype = r.rank() == 0 ? at::kFloat : at::kDouble;
         r.all_reduce(at::ones({4}, dtype), Order::kTree, "x")->wait();
       },
       "all_reduce of x of 4 Float", "all_reduce of x of 4 Double"},
      {[](Communicator& r) {
         std::vector<int64_t> numbers(static_cast<size_t>(2 + r.rank()), 1);
         r.all_reduce(numbers, Reduce::kSum);
       },
       "control all_reduce of 2 Long", "control all_reduce of 3 Long"},
      {[](Communicator& r) {
         std::vector<int64_t> numbers(4, 1);
         if (r.rank() == 0) {
           r.all_gather("text");
         } else {
           r.all_reduce(numbers, Reduce::kSum);
         }
       },
       "control all_gather of 0 Byte", "control all_reduce of 4 Long"}};
  for (const Case& one : cases) {
    const auto found = messages(two(20, true), one.body);
    for (const std::string& message : found) {
      expect_parts(message, {"rank 0 for " + one.first, "rank 1 for " + one.second});
    }
  }
}

TEST(Gloo, AddsTheSameCallsWithAndWithoutVerification) {
  for (const bool verify : {false, true}) {
    const auto found = messages(two(20, verify), [](Communicator& ranks) {
      for (const Order order : {Order::kFast, Order::kTree}) {
        const at::Tensor sum = at::full({6}, 1.0 + ranks.rank());
        ranks.all_reduce(sum, order, "x")->wait();
        EXPECT_TRUE(sum.eq(3).all().item<bool>());
      }
      EXPECT_EQ(ranks.all_gather(std::string(static_cast<size_t>(ranks.rank()), 'a')),
                (std::vector<std::string>{"", "a"}));
    });
    EXPECT_EQ(found, (std::vector<std::string>{"", ""}));
  }
}

TEST(Gloo, SaysWhyTheOtherRankEnded) {
  const auto found = messages(two(20, false), [](Communicator& ranks) {
    if (ranks.rank() == 1) throw DistributedError("the disk of rank 1 is on fire");
    std::vector<int64_t> numbers = {1};
    ranks.all_reduce(numbers, Reduce::kSum);
  });
  expect_parts(found[0],
               {"rank 1 (host ", "process ", "ended: the disk of rank 1 is on fire", "control all_reduce #1"});
}

TEST(Gloo, FailsWhatIsQueuedBehindAFailureAtOnce) {
  const auto begin = std::chrono::steady_clock::now();
  const auto found = messages(two(2, false), [](Communicator& ranks) {
    if (ranks.rank() == 1) {
      std::this_thread::sleep_for(std::chrono::seconds(6));
      return;
    }
    std::vector<std::shared_ptr<Pending>> pending;
    for (int i = 0; i < 10; ++i) pending.push_back(ranks.all_reduce(at::ones({4}), Order::kFast, "x"));
    EXPECT_THROW(pending.back()->wait(), DistributedError);
    pending.front()->wait();
  });
  expect_parts(found[0], {"rank 1 (host ", "lives, but never came to all_reduce of x #1"});
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(12)) << "ten timeouts, one after another";
}

TEST(Gloo, NamesTheRankThatNeverCame) {
  GlooOptions options = two(1, false);
  options.size = 3;
  options.host = "127.0.0.1";
  options.port = test::free_port();
  try {
    make_gloo(options, meet(options));
    FAIL() << "two ranks are missing";
  } catch (const DistributedError& error) {
    expect_parts(error.what(), {"ranks 1, 2 did not come within 1 s"});
  }
}

}  // namespace
}  // namespace limbeck::parallel
