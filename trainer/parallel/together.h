// Steps that all ranks take or none: what fails on one rank fails on all, with the same message and exit code, instead
// of leaving the others in an operation that will never be joined.
#pragma once
#include <functional>
#include <map>
#include <string>

#include "trainer/parallel/communicator.h"

namespace limbeck::parallel {

// Runs `step` on this rank and waits for the others to have done the same. Throws the first failing rank's error, with
// the rank's number before it where there are several ranks.
void together(Communicator& ranks, const std::function<void()>& step);

// The same values under the same keys on every rank, or DistributedError naming keys, ranks and values.
void require_equal(Communicator& ranks, const std::map<std::string, std::string>& mine);

// A text of rank 0 for everybody.
std::string of_first_rank(Communicator& ranks, const std::string& text);

}  // namespace limbeck::parallel
