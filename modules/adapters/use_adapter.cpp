#include "modules/adapters/use_adapter.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <set>
#include <vector>

#include "modules/errors.h"
#include "modules/models/layers.h"

namespace limbeck::adapters {

void use_adapter(const models::BuiltModel& built, const std::string& name) {
  std::vector<models::Linear*> linears;
  std::set<std::string> known;
  for (const auto& module : built.model->modules()) {
    auto* linear = dynamic_cast<models::Linear*>(module.get());
    if (linear == nullptr) continue;
    linears.push_back(linear);
    for (const std::string& own : linear->adapter_names()) known.insert(own);
  }
  if (!name.empty() && !known.contains(name)) {
    throw UsageError(fmt::format("[{}] has no adapter {}: it has {}", built.model->path(), name,
                                 known.empty() ? "none" : fmt::format("{}", fmt::join(known, ", "))));
  }
  for (models::Linear* linear : linears) linear->use_adapter(name);
}

}  // namespace limbeck::adapters
