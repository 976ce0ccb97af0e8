// parallel.verify_calls: the ranks tell each other what they are about to do, and a difference is a message.
#pragma once
#include <string>
#include <vector>

namespace limbeck::parallel {

// `calls`: what each rank asks for. DistributedError when one differs from that of `rank`.
void require_same_call(const std::vector<std::string>& calls, int rank);

}  // namespace limbeck::parallel
