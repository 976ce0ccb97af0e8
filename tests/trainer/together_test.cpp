// What fails on one rank fails on all of them, as what it is: the exit code of every kind of exception, on every rank.
#include "trainer/parallel/together.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <new>

#include "modules/errors.h"
#include "modules/failure.h"
#include "tests/support/thread_ranks.h"

namespace limbeck::parallel {
namespace {

struct Kind {
  int code;
  std::function<void()> thrower;
};

std::vector<Kind> kinds() {
  return {{2, [] { throw UsageError("what happened"); }},
          {2, [] { throw ContractError("what happened"); }},
          {3, [] { throw InputDataError("what happened"); }},
          {4, [] { throw WeightsError("what happened"); }},
          {5, [] { throw NumericError("what happened"); }},
          {5, [] { throw std::bad_alloc(); }},
          {5, [] { TORCH_CHECK_WITH(OutOfMemoryError, false, "what happened"); }},
          {6, [] { throw IoError("what happened"); }},
          {6,
           [] {
             throw std::filesystem::filesystem_error("what happened", std::error_code(ENOSPC, std::generic_category()));
           }},
          {75, [] { throw StoppedError("what happened"); }},
          {1, [] { throw std::logic_error("what happened"); }},
          {1, [] { TORCH_CHECK(false, "what happened"); }}};
}

using Meeting = std::function<void(Communicator&, const std::function<void()>&)>;

// Rank 1 of three throws; the exit code that each rank would end with.
std::vector<int> codes_after(const Meeting& meeting, const std::function<void()>& thrower) {
  std::vector<int> codes(3, 0);
  test::run_ranks(3, [&](Communicator& ranks) {
    try {
      meeting(ranks, [&] {
        if (ranks.rank() == 1) thrower();
      });
    } catch (...) {
      const Failure failure = describe_failure(std::current_exception());
      codes[static_cast<size_t>(ranks.rank())] = failure.exit_code;
      EXPECT_EQ(failure.message.find('\n'), std::string::npos) << failure.message;
    }
  });
  return codes;
}

TEST(Together, EveryKindOfExceptionKeepsItsExitCodeOnEveryRank) {
  const Meeting steps = [](Communicator& ranks, const std::function<void()>& step) { together(ranks, step); };
  const Meeting parts = [](Communicator& ranks, const std::function<void()>& step) {
    on_all_ranks(ranks, [&]() -> nlohmann::json {
      step();
      return ranks.rank();
    });
  };
  for (const Kind& kind : kinds()) {
    EXPECT_EQ(codes_after(steps, kind.thrower), std::vector<int>(3, kind.code));
    EXPECT_EQ(codes_after(parts, kind.thrower), std::vector<int>(3, kind.code));
  }
}

TEST(Together, GivesWhatEachRankReturned) {
  const auto thrown = test::run_ranks(3, [](Communicator& ranks) {
    const auto all = on_all_ranks(ranks, [&]() -> nlohmann::json { return 10 * ranks.rank(); });
    EXPECT_EQ(all, (std::vector<nlohmann::json>{0, 10, 20}));
  });
  EXPECT_EQ(thrown, std::vector<std::string>(3));
}

TEST(Together, NamesAllThatFailed) {
  const auto thrown = test::run_ranks(3, [](Communicator& ranks) {
    on_all_ranks(ranks, [&]() -> nlohmann::json {
      if (ranks.rank() > 0) throw IoError("no disk");
      return nullptr;
    });
  });
  for (const std::string& message : thrown) EXPECT_EQ(message, "rank 1 of 3: no disk; rank 2 of 3: no disk");
}

}  // namespace
}  // namespace limbeck::parallel
