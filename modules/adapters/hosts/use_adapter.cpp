#include "modules/adapters/hosts/use_adapter.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <set>
#include <vector>

#include "modules/errors.h"

namespace limbeck::adapters {
namespace {

std::vector<models::AdapterHost*> hosts(const models::BuiltModel& built) {
  std::vector<models::AdapterHost*> found;
  for (const auto& module : built.model->modules()) {
    if (auto* host = dynamic_cast<models::AdapterHost*>(module.get())) found.push_back(host);
  }
  return found;
}

}  // namespace

void use_adapter(const models::BuiltModel& built, const std::string& name) {
  std::set<std::string> known;
  for (const models::AdapterHost* host : hosts(built)) {
    for (const std::string& own : host->adapter_names()) known.insert(own);
  }
  if (!name.empty() && !known.contains(name)) {
    throw UsageError(fmt::format("[{}] has no adapter {}: it has {}", built.model->path(), name,
                                 known.empty() ? "none" : fmt::format("{}", fmt::join(known, ", "))));
  }
  for (models::AdapterHost* host : hosts(built)) host->use_adapter(name);
}

}  // namespace limbeck::adapters
