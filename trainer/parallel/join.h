// Joins the ranks of a run, however they were started.
#pragma once
#include <memory>

#include "trainer/parallel/communicator.h"
#include "trainer/parallel/topology.h"
#include "trainer/recipe/settings.h"

namespace limbeck::parallel {

struct Joined {
  Topology topology;
  std::unique_ptr<Communicator> ranks;
};

// Reads parallel.* and the launcher's environment. Blocks until all ranks have come.
Joined join_ranks(const recipe::Settings& settings);

}  // namespace limbeck::parallel
