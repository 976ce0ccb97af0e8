// Ranks that are threads of one process, for tests of what ranks do together without sending tensors: a Communicator
// that gathers texts and reduces numbers through shared memory.
#pragma once
#include <barrier>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "trainer/parallel/communicator.h"

namespace limbeck::test {

// Runs `body` once for each of `size` ranks, each on a thread of its own; the messages of what they threw, by rank.
std::vector<std::string> run_ranks(int size, const std::function<void(parallel::Communicator&)>& body);

}  // namespace limbeck::test
