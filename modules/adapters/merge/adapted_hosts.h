// Whose weights an adapter is merged into, or taken out of.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "modules/adapters/hosts/adapter_hosts.h"

namespace limbeck::adapters {

// The hosts whose adapters work now. UsageError, by name, for an adapter of a whole layer, which changes no weight, for
// one whose merge_fault() says so, and where head and embedding share the weight.
std::vector<AnyHost> adapted_hosts(const models::BuiltModel& built);

// Where the weight is packed: its format, "nf4"; else "".
std::string packed_in(const AnyHost& host);
std::string path_of(const AnyHost& host);

// Of linear modules that have one.
inline std::optional<at::Tensor> bias_of(const models::Linear& linear) { return linear.bias(); }
template <class Host>
std::optional<at::Tensor> bias_of(const Host&) {
  return std::nullopt;
}

}  // namespace limbeck::adapters
