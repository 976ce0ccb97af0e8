#include "trainer/parallel/ranks/together.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <exception>

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
    mine = failed_outcome(outcomes.own);
  }
  for (const std::string& text : ranks.all_gather(outcome_text(mine))) {
    outcomes.of_rank.push_back(json::parse(text));
  }
  return outcomes;
}

std::vector<size_t> failed_ranks(const std::vector<json>& of_rank) {
  std::vector<size_t> failed;
  for (size_t rank = 0; rank < of_rank.size(); ++rank) {
    if (of_rank[rank].contains("error")) failed.push_back(rank);
  }
  return failed;
}

std::string error_of(const json& outcome) { return outcome["error"].get<std::string>(); }

}  // namespace

json failed_outcome(const std::exception_ptr& thrown) {
  const Failure failure = describe_failure(thrown);
  return {{"error", failure.message}, {"code", failure.exit_code}};
}

// A path in a message need not be UTF-8.
std::string outcome_text(const json& outcome) { return outcome.dump(-1, ' ', false, json::error_handler_t::replace); }

void end_alike(const std::vector<json>& of_rank, int rank, const std::exception_ptr& own) {
  const std::vector<size_t> failed = failed_ranks(of_rank);
  if (failed.empty()) return;
  const auto me = static_cast<size_t>(rank);
  const json& first = of_rank[failed.front()];
  const int code = first["code"].get<int>();
  // A fault of the program is better shown as it is, where it happened.
  if (me == failed.front() && code == kFaultInLimbeck && own) std::rethrow_exception(own);
  const json& mine = of_rank[me].contains("error") ? of_rank[me] : first;
  std::vector<size_t> same;  // who failed as this rank did, or as the first one that did
  for (const size_t one : failed) {
    if (of_rank[one] == mine) same.push_back(one);
  }
  const std::string who = same.size() == of_rank.size()
                              ? ""
                              : fmt::format("rank{} {}: ", same.size() > 1 ? "s" : "", fmt::join(same, ", "));
  throw_failure({code, who + error_of(mine), "", me != same.front()});
}

void together(Communicator& ranks, const std::function<void()>& step) {
  if (ranks.size() == 1) return step();
  const Outcomes outcomes = outcomes_of(ranks, [&]() -> json {
    step();
    return nullptr;
  });
  end_alike(outcomes.of_rank, ranks.rank(), outcomes.own);
}

void alike(const Communicator& ranks, const std::function<void()>& step) {
  if (ranks.rank() == 0) return step();
  try {
    step();
  } catch (const DistributedError&) {
    throw;
  } catch (const Error&) {
    Failure failure = describe_failure(std::current_exception());
    failure.told_elsewhere = true;
    throw_failure(failure);
  }
}

std::vector<json> on_all_ranks(Communicator& ranks, const std::function<json()>& part) {
  std::vector<json> values;
  if (ranks.size() == 1) {  // without the way through text: a save beside training should take little of its processor
    values.push_back(part());
    return values;
  }
  Outcomes outcomes = outcomes_of(ranks, part);
  const std::vector<size_t> failed = failed_ranks(outcomes.of_rank);
  if (failed.empty()) {
    for (json& outcome : outcomes.of_rank) values.push_back(std::move(outcome["value"]));
    return values;
  }
  const int code = outcomes.of_rank[failed.front()]["code"].get<int>();
  if (ranks.rank() == static_cast<int>(failed.front()) && code == kFaultInLimbeck) {
    std::rethrow_exception(outcomes.own);
  }
  std::vector<std::string> all;
  for (const size_t rank : failed) {
    all.push_back(fmt::format("rank {} of {}: {}", rank, outcomes.of_rank.size(), error_of(outcomes.of_rank[rank])));
  }
  throw_failure({code, fmt::format("{}", fmt::join(all, "; ")), "", ranks.rank() != 0});
}

void throw_disagreement(const Communicator& ranks, const std::string& message) {
  throw_failure({static_cast<int>(ExitCode::kDistributed), message, "", ranks.rank() != 0});
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
  throw_disagreement(ranks,
                     fmt::format("the ranks disagree: {}: start all of them with the same recipe, data and build",
                                 fmt::join(found, "; ")));
}

std::string of_first_rank(Communicator& ranks, const std::string& text) { return ranks.all_gather(text)[0]; }

}  // namespace limbeck::parallel
