#include "trainer/checkpoint/ranks_agree.h"

#include <fmt/format.h>

#include <string>
#include <utility>

#include "modules/errors.h"

namespace limbeck::checkpoint {
namespace {

using nlohmann::json;

// Every exception becomes a vote: one that left this function would leave the other ranks waiting.
json outcome_of(const std::function<json()>& part) {
  try {
    return {{"value", part()}};
  } catch (const Error& error) {
    return {{"error", error.what()}, {"code", static_cast<int>(error.code())}};
  } catch (const std::exception& error) {
    return {{"error", error.what()}, {"code", static_cast<int>(ExitCode::kIo)}};
  }
}

[[noreturn]] void throw_as(ExitCode code, const std::string& message) {
  switch (code) {
    case ExitCode::kUsage:
      throw ContractError(message);
    case ExitCode::kWeights:
      throw WeightsError(message);
    case ExitCode::kDistributed:
      throw DistributedError(message);
    default:
      throw IoError(message);
  }
}

// Of one rank alone, without the way through text: a save beside training should take little of its processor.
std::vector<json> alone(json outcome) {
  if (outcome.contains("error")) {
    throw_as(static_cast<ExitCode>(outcome["code"].get<int>()), outcome["error"].get<std::string>());
  }
  std::vector<json> values;
  values.push_back(std::move(outcome["value"]));
  return values;
}

}  // namespace

std::vector<json> on_all_ranks(parallel::Communicator& ranks, const std::function<json()>& part) {
  json own = outcome_of(part);
  if (ranks.size() == 1) return alone(std::move(own));
  // A path in a message need not be UTF-8.
  const std::string mine = own.dump(-1, ' ', false, json::error_handler_t::replace);
  const std::vector<std::string> all = ranks.all_gather(mine);
  std::vector<json> values;
  std::string failed;
  int code = 0;
  for (size_t rank = 0; rank < all.size(); ++rank) {
    json outcome = json::parse(all[rank]);
    if (outcome.contains("error")) {
      if (failed.empty()) code = outcome["code"].get<int>();
      if (!failed.empty()) failed += "; ";
      failed += fmt::format("rank {} of {}: ", rank, all.size());
      failed += outcome["error"].get<std::string>();
    } else {
      values.push_back(std::move(outcome["value"]));
    }
  }
  if (!failed.empty()) throw_as(static_cast<ExitCode>(code), failed);
  return values;
}

}  // namespace limbeck::checkpoint
