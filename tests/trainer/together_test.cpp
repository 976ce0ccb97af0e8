// What fails on one rank fails on all of them, as what it is: the exit code of every kind of exception, on every rank.
#include "trainer/parallel/ranks/together.h"

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

// What each of three ranks prints, or "" where another one does. `says`: what it fails by, "" where it does not.
std::vector<std::string> printed_by(const std::vector<std::string>& says) {
  std::vector<std::string> printed(3);
  test::run_ranks(3, [&](Communicator& ranks) {
    const auto me = static_cast<size_t>(ranks.rank());
    try {
      together(ranks, [&] {
        if (!says[me].empty()) throw InputDataError(says[me]);
      });
    } catch (...) {
      const Failure failure = describe_failure(std::current_exception());
      EXPECT_EQ(failure.exit_code, 3);
      EXPECT_NE(failure.message, "") << "a board or a JSON file may want it all the same";
      if (!failure.told_elsewhere) printed[me] = failure.message;
    }
  });
  return printed;
}

TEST(Together, WhatAllWouldSayIsPrintedOnceAndWhatOneSaysByIt) {
  using Lines = std::vector<std::string>;
  EXPECT_EQ(printed_by({"a", "a", "a"}), (Lines{"a", "", ""}));
  EXPECT_EQ(printed_by({"", "a", ""}), (Lines{"", "rank 1: a", ""}));
  EXPECT_EQ(printed_by({"", "a", "a"}), (Lines{"", "ranks 1, 2: a", ""}));
  EXPECT_EQ(printed_by({"b", "a", "b"}), (Lines{"ranks 0, 2: b", "rank 1: a", ""}));
  EXPECT_EQ(printed_by({"a", "b", "c"}), (Lines{"rank 0: a", "rank 1: b", "rank 2: c"}));
}

TEST(Together, ValuesThatDifferAreSaidByTheFirstRank) {
  std::vector<int> silent(3);
  test::run_ranks(3, [&](Communicator& ranks) {
    try {
      require_equal(ranks, {{"seed", ranks.rank() == 2 ? "8" : "0"}});
    } catch (...) {
      const Failure failure = describe_failure(std::current_exception());
      EXPECT_EQ(failure.exit_code, 7);
      silent[static_cast<size_t>(ranks.rank())] = failure.told_elsewhere;
    }
  });
  EXPECT_EQ(silent, (std::vector<int>{0, 1, 1}));
}

TEST(Together, AlikeKeepsTheKindAndTheFirstRanksWord) {
  test::run_ranks(2, [&](Communicator& ranks) {
    EXPECT_THROW(alike(ranks, [] { throw NumericError("x"); }), NumericError);
    try {
      alike(ranks, [] { throw NumericError("x"); });
    } catch (...) {
      EXPECT_EQ(describe_failure(std::current_exception()).told_elsewhere, ranks.rank() != 0);
    }
    try {  // each survivor has a word of its own about the dead
      alike(ranks, [] { throw DistributedError("gone"); });
    } catch (...) {
      EXPECT_FALSE(describe_failure(std::current_exception()).told_elsewhere);
    }
  });
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
