#include "trainer/parallel/ranks/same_call.h"

#include <fmt/format.h>

#include "modules/errors.h"

namespace limbeck::parallel {

void require_same_call(const std::vector<std::string>& calls, int rank) {
  const std::string& own = calls[static_cast<size_t>(rank)];
  for (size_t other = 0; other < calls.size(); ++other) {
    if (calls[other] == own) continue;
    throw DistributedError(
        fmt::format("ranks ask for different operations: rank {} for {}, rank {} for {}: this is a "
                    "fault in limbeck, or the ranks run different versions of it",
                    rank, own, other, calls[other]));
  }
}

}  // namespace limbeck::parallel
