// Slurm's short forms, written out: hosts "node[01-03,7],b2" and tasks per node "4(x2),3". A malformed one is a
// UsageError that shows it; nothing grows beyond 65536 entries.
#pragma once
#include <string>
#include <vector>

namespace limbeck::parallel {

// `name`: the variable it came from, for messages.
std::vector<std::string> expanded_hosts(const std::string& name, const std::string& list);
std::vector<int> expanded_tasks_per_node(const std::string& name, const std::string& list);

}  // namespace limbeck::parallel
