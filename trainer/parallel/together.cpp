#include "trainer/parallel/together.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <exception>
#include <optional>

#include "modules/errors.h"
#include "modules/failure.h"

namespace limbeck::parallel {

namespace {

using nlohmann::json;

// What each rank's part came to: {"value"} or {"error", "code"}.
struct Outcomes {
  std::vector<json> of_rank;
  std::exception_ptr own;
};

// Every exception becomes a vote, of the kind that it is: one that left here would leave the other ranks waiting.
Outcomes outcomes_of(Communicator& ranks, const std::function<json()>& part) {
  Outcomes outcomes;
  json mine;
  try {
    mine["value"] = part();
  } catch (const DistributedError&) {
    throw;  // the ranks have parted already
  } catch (...) {
    outcomes.own = std::current_exception();
    const Failure failure = describe_failure(outcomes.own);
    mine = {{"error", failure.message}, {"code", failure.exit_code}};
  }
  // A path in a message need not be UTF-8.
  for (const std::string& text : ranks.all_gather(mine.dump(-1, ' ', false, json::error_handler_t::replace))) {
    outcomes.of_rank.push_back(json::parse(text));
  }
  return outcomes;
}

// Fails as the first failing rank did. A fault of the program is better shown as it is, where it happened.
[[noreturn]] void fail(const Outcomes& outcomes, const Communicator& ranks, size_t first, const std::string& message) {
  const int code = outcomes.of_rank[first]["code"].get<int>();
  if (static_cast<int>(first) == ranks.rank() && code == kFaultInLimbeck) std::rethrow_exception(outcomes.own);
  throw_failure({code, message, ""});
}

}  // namespace

void together(Communicator& ranks, const std::function<void()>& step) {
  if (ranks.size() == 1) return step();
  const Outcomes outcomes = outcomes_of(ranks, [&]() -> json {
    step();
    return nullptr;
  });
  for (size_t rank = 0; rank < outcomes.of_rank.size(); ++rank) {
    const json& outcome = outcomes.of_rank[rank];
    if (!outcome.contains("error")) continue;
    fail(outcomes, ranks, rank, fmt::format("rank {}: {}", rank, outcome["error"].get<std::string>()));
  }
}

std::vector<json> on_all_ranks(Communicator& ranks, const std::function<json()>& part) {
  std::vector<json> values;
  if (ranks.size() == 1) {  // without the way through text: a save beside training should take little of its processor
    values.push_back(part());
    return values;
  }
  Outcomes outcomes = outcomes_of(ranks, part);
  std::vector<std::string> failed;
  std::optional<size_t> first;
  for (size_t rank = 0; rank < outcomes.of_rank.size(); ++rank) {
    json& outcome = outcomes.of_rank[rank];
    if (!outcome.contains("error")) {
      values.push_back(std::move(outcome["value"]));
      continue;
    }
    if (!first) first = rank;
    failed.push_back(
        fmt::format("rank {} of {}: {}", rank, outcomes.of_rank.size(), outcome["error"].get<std::string>()));
  }
  if (first) fail(outcomes, ranks, *first, fmt::format("{}", fmt::join(failed, "; ")));
  return values;
}

void require_equal(Communicator& ranks, const std::map<std::string, std::string>& mine) {
  if (ranks.size() == 1) return;
  const auto all = ranks.all_gather(nlohmann::json(mine).dump());
  const auto first = nlohmann::json::parse(all[0]).get<std::map<std::string, std::string>>();
  std::vector<std::string> found;
  for (size_t rank = 1; rank < all.size(); ++rank) {
    auto other = nlohmann::json::parse(all[rank]).get<std::map<std::string, std::string>>();
    for (const auto& [key, value] : first) {
      const auto theirs = other.contains(key) ? other[key] : "nothing";
      if (theirs != value)
        found.push_back(fmt::format("{} is {} on rank 0 and {} on rank {}", key, value, theirs, rank));
      other.erase(key);
    }
    for (const auto& [key, value] : other) found.push_back(fmt::format("{} = {} on rank {} alone", key, value, rank));
  }
  if (found.empty()) return;
  throw DistributedError(fmt::format("the ranks disagree: {}: start all of them with the same recipe, data and build",
                                     fmt::join(found, "; ")));
}

std::string of_first_rank(Communicator& ranks, const std::string& text) { return ranks.all_gather(text)[0]; }

}  // namespace limbeck::parallel
