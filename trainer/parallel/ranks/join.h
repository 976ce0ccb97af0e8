// Joins the ranks of a run, however they were started.
#pragma once
#include <exception>
#include <memory>

#include "trainer/parallel/communicator.h"
#include "trainer/parallel/launch/topology.h"
#include "trainer/recipe/settings.h"

namespace limbeck::parallel {

struct Joined {
  Topology topology;
  std::unique_ptr<Communicator> ranks;
};

// For a command line or recipe that is refused, so that there are no settings to join by: meets the other ranks all the
// same, for some seconds, by the launcher's word. All of them end then, and what all were refused for is printed once.
// Comes back where there are no other ranks.
void refuse_together(const std::exception_ptr& refused);

// Reads parallel.* and the launcher's environment. Blocks until all ranks have come.
Joined join_ranks(const recipe::Settings& settings);

}  // namespace limbeck::parallel
