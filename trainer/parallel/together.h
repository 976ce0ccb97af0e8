// Steps that all ranks take or none: what fails on one rank fails on all, with the same message and exit code, instead
// of leaving the others in an operation that will never be joined.
#pragma once
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "trainer/parallel/communicator.h"

namespace limbeck::parallel {

// Runs `step` on this rank and waits for the others to have done the same. Throws the first failing rank's error, with
// the rank's number before it where there are several ranks.
void together(Communicator& ranks, const std::function<void()>& step);

// The same for a step with a result: what it returned on every rank, by rank. All ranks that failed are named.
std::vector<nlohmann::json> on_all_ranks(Communicator& ranks, const std::function<nlohmann::json()>& part);

// The same values under the same keys on every rank, or DistributedError naming keys, ranks and values.
void require_equal(Communicator& ranks, const std::map<std::string, std::string>& mine);

// A text of rank 0 for everybody.
std::string of_first_rank(Communicator& ranks, const std::string& text);

}  // namespace limbeck::parallel
