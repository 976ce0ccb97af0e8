#include "modules/adapters/use_adapter.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <set>

#include "modules/errors.h"

namespace limbeck::adapters {
namespace {

// Calls `visit` for every module that adapters can be on.
template <class Visit>
void each_host(const models::BuiltModel& built, const Visit& visit) {
  for (const auto& module : built.model->modules()) {
    if (auto* linear = dynamic_cast<models::Linear*>(module.get())) visit(*linear);
    if (auto* layer = dynamic_cast<models::Layer*>(module.get())) visit(*layer);
  }
}

}  // namespace

void use_adapter(const models::BuiltModel& built, const std::string& name) {
  std::set<std::string> known;
  each_host(built, [&](const auto& host) {
    for (const std::string& own : host.adapter_names()) known.insert(own);
  });
  if (!name.empty() && !known.contains(name)) {
    throw UsageError(fmt::format("[{}] has no adapter {}: it has {}", built.model->path(), name,
                                 known.empty() ? "none" : fmt::format("{}", fmt::join(known, ", "))));
  }
  each_host(built, [&](auto& host) { host.use_adapter(name); });
}

}  // namespace limbeck::adapters
