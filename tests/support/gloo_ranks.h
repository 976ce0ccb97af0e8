// Ranks that are threads of one process, joined by real Gloo on the loopback: for tests of what ranks do with tensors.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "trainer/parallel/ranks/gloo.h"
#include "trainer/parallel/ranks/meeting.h"

namespace limbeck::test {

uint16_t free_port();

// Runs `body` once for each of `size` ranks, each on a thread of its own, and hands it its
// line and where the ranks met. The messages of what they threw, by rank.
std::vector<std::string> run_gloo_ranks(
    parallel::GlooOptions options,
    const std::function<void(std::unique_ptr<parallel::Communicator>, const parallel::Meeting&)>& body);
std::vector<std::string> run_gloo_ranks(
    int size, const std::function<void(std::unique_ptr<parallel::Communicator>, const parallel::Meeting&)>& body);

}  // namespace limbeck::test
