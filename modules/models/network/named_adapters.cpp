#include "modules/models/network/named_adapters.h"

#include <fmt/format.h>

#include "modules/errors.h"

namespace limbeck::models {

void AdapterHost::own(const std::string& name, const std::shared_ptr<precision::ContractModule>& adapter) {
  auto& host = dynamic_cast<torch::nn::Module&>(*this);
  if (name.empty() || name.find('.') != std::string::npos || host.named_children().contains(name)) {
    const std::string& path = adapter->path();
    throw UsageError(
        fmt::format("[{}] cannot have an adapter called \"{}\": wanted a name without a dot that nothing of it has yet",
                    path.substr(0, path.size() - name.size() - 1), name));
  }
  host.register_module(name, adapter);
}

AdaptersInUse::AdaptersInUse(torch::nn::Module& module) {
  for (const auto& inner : module.modules()) {
    if (auto* host = dynamic_cast<AdapterHost*>(inner.get())) hosts_.emplace_back(host, host->adapter_in_use());
  }
}

AdaptersInUse::Again::Again(const AdaptersInUse& wanted) {
  for (const auto& [host, name] : wanted.hosts_) {
    const std::string now = host->adapter_in_use();
    if (now == name) continue;
    before_.emplace_back(host, now);
    host->use_adapter(name);
  }
}

AdaptersInUse::Again::~Again() {
  for (const auto& [host, name] : before_) host->use_adapter(name);
}

}  // namespace limbeck::models
