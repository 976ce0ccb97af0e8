// Steps that all ranks take or none: what fails on one rank fails on all, with the same exit code, instead of leaving
// the others in an operation that will never be joined. One of them prints it: the first of those that failed alike,
// with its number where others did not (ToldElsewhere, modules/failure.h).
#pragma once
#include <exception>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "trainer/parallel/communicator.h"

namespace limbeck::parallel {

// Runs `step` on this rank and waits for the others to have done the same. A rank that failed throws its own error, the
// others that of the first which did.
void together(Communicator& ranks, const std::function<void()>& step);

// For a step that fails on all ranks alike or on none, by numbers that all of them have: nothing is exchanged, and the
// first rank alone prints the error.
void alike(const Communicator& ranks, const std::function<void()>& step);

// The same as together() for a step with a result: what it returned on every rank, by rank. All ranks that failed are
// named.
std::vector<nlohmann::json> on_all_ranks(Communicator& ranks, const std::function<nlohmann::json()>& part);

// What together() exchanges, for ranks that have no communicator yet: a failure as text, and the end that all outcomes
// of all ranks lead to. `own`: this rank's exception, or null.
nlohmann::json failed_outcome(const std::exception_ptr& thrown);
std::string outcome_text(const nlohmann::json& outcome);
void end_alike(const std::vector<nlohmann::json>& of_rank, int rank, const std::exception_ptr& own);

// DistributedError of what all ranks see alike, by numbers that all of them have; the first prints it.
[[noreturn]] void throw_disagreement(const Communicator& ranks, const std::string& message);

// The same values under the same keys on every rank, or DistributedError naming keys, ranks and values.
void require_equal(Communicator& ranks, const std::map<std::string, std::string>& mine);

// A text of rank 0 for everybody.
std::string of_first_rank(Communicator& ranks, const std::string& text);

}  // namespace limbeck::parallel
