#include "modules/models/named_adapters.h"

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

}  // namespace limbeck::models
