// What the recipe's parallel.* keys ask of the ranks, read once. Who this process is among them comes from its launcher
// (launch/topology.h).
#pragma once
#include <cstdint>

#include "trainer/parallel/communicator.h"
#include "trainer/recipe/settings.h"

namespace limbeck::parallel {

struct ParallelOptions {
  int zero = 0;                // what ranks divide; 1: optimizer states, 2: gradients too, 3: weights too
  Order order = Order::kFast;  // of the sums of gradients
  double first_timeout_s = 0, timeout_s = 0;  // of a rank that waits for another
  bool verify_calls = false;                  // ranks tell each other what they are about to do
  int64_t check_replicas = 0;                 // compare the weights of ranks every so many updates; 0: never
};

ParallelOptions read_parallel_options(const recipe::Settings& settings);

}  // namespace limbeck::parallel
