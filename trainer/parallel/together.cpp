#include "trainer/parallel/together.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <exception>
#include <nlohmann/json.hpp>

#include "modules/errors.h"

namespace limbeck::parallel {

void together(Communicator& ranks, const std::function<void()>& step) {
  if (ranks.size() == 1) return step();
  std::exception_ptr own;
  nlohmann::json mine = nullptr;
  try {
    step();
  } catch (const DistributedError&) {
    throw;  // the ranks have parted already
  } catch (const Error& error) {
    own = std::current_exception();
    mine = {{"code", static_cast<int>(error.code())}, {"what", error.what()}};
  } catch (const std::exception& error) {
    own = std::current_exception();
    mine = {{"code", 1}, {"what", error.what()}};
  }
  const auto replace = nlohmann::json::error_handler_t::replace;
  const auto all = ranks.all_gather(mine.dump(-1, ' ', false, replace));
  for (size_t rank = 0; rank < all.size(); ++rank) {
    const auto failure = nlohmann::json::parse(all[rank]);
    if (failure.is_null()) continue;
    // A fault of the program is better shown as it is, where it happened.
    if (static_cast<int>(rank) == ranks.rank() && failure["code"] == 1) std::rethrow_exception(own);
    throw Error(static_cast<ExitCode>(failure["code"].get<int>()),
                fmt::format("rank {}: {}", rank, failure["what"].get<std::string>()));
  }
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
