#include "modules/adapters/added/added_kind.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "modules/errors.h"

namespace limbeck::adapters {
namespace {

std::deque<AddedKind>& every_added_kind() {
  static std::deque<AddedKind> kinds;
  return kinds;
}

// It is a recipe's word and a part of tensor names.
bool is_word(const std::string& name) {
  constexpr std::string_view kAllowed = "abcdefghijklmnopqrstuvwxyz0123456789_";
  return !name.empty() && name.find_first_not_of(kAllowed) == std::string::npos;
}

bool is_shipped(const std::string& name) {
  return name == "none" || name == "lora" || name == "dora" || name == "ia3" || name == "npt";
}

}  // namespace

void add_adapter_kind(AddedKind kind) {
  if (!is_word(kind.name)) {
    throw UsageError(fmt::format("adapters: \"{}\" is no name: wanted lower-case letters, digits and _", kind.name));
  }
  if (is_shipped(kind.name) || find_added(kind.name) != nullptr) {
    throw UsageError(fmt::format("adapters: {} is registered twice; give one of them another name", kind.name));
  }
  if (!kind.on_linear && !kind.on_embedding && !kind.on_experts && !kind.on_layer) {
    throw UsageError(fmt::format(
        "adapters: {} can be on nothing: wanted one of on_linear, on_embedding, on_experts, on_layer", kind.name));
  }
  every_added_kind().push_back(std::move(kind));
}

const std::deque<AddedKind>& added_kinds() { return every_added_kind(); }

const AddedKind* find_added(const std::string& name) {
  const auto& kinds = added_kinds();
  const auto found = std::find_if(kinds.begin(), kinds.end(), [&](const auto& kind) { return kind.name == name; });
  return found == kinds.end() ? nullptr : &*found;
}

}  // namespace limbeck::adapters
