// One phase of a save on every rank: each does its part, and all learn whether all succeeded.
#pragma once
#include <functional>
#include <nlohmann/json.hpp>
#include <vector>

#include "trainer/parallel/communicator.h"

namespace limbeck::checkpoint {

// Runs `part`; gives what it returned on every rank, by rank. When it threw on any rank, every rank throws the same
// Error, of the kind of the first rank's, which names the ranks that failed.
std::vector<nlohmann::json> on_all_ranks(parallel::Communicator& ranks, const std::function<nlohmann::json()>& part);

}  // namespace limbeck::checkpoint
