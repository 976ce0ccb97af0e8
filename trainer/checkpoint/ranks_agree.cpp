#include "trainer/checkpoint/ranks_agree.h"

#include <fmt/format.h>

#include <string>

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

// What every rank would get, without the way through text: a save beside training should take little of its processor.
std::vector<json> alone(const std::function<json()>& part) {
  try {
    std::vector<json> values;
    values.push_back(part());
    return values;
  } catch (const Error& error) {
    throw_as(error.code(), error.what());
  } catch (const std::exception& error) {
    throw_as(ExitCode::kIo, error.what());
  }
}

}  // namespace

std::vector<json> on_all_ranks(parallel::Communicator& ranks, const std::function<json()>& part) {
  if (ranks.size() == 1) return alone(part);
  // A path in a message need not be UTF-8.
  const std::string mine = outcome_of(part).dump(-1, ' ', false, json::error_handler_t::replace);
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
