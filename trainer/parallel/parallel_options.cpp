#include "trainer/parallel/parallel_options.h"

namespace limbeck::parallel {

ParallelOptions read_parallel_options(const recipe::Settings& settings) {
  return {.zero = static_cast<int>(settings.integer("parallel.zero")),
          .order = settings.text("parallel.reduce") == "tree" ? Order::kTree : Order::kFast,
          .first_timeout_s = settings.number("parallel.first_timeout"),
          .timeout_s = settings.number("parallel.timeout"),
          .verify_calls = settings.enabled("parallel.verify_calls"),
          .check_replicas = settings.integer("parallel.check_replicas")};
}

}  // namespace limbeck::parallel
