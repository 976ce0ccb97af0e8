// The settings of a recipe that a test writes as pairs of key and value; a key may come several times if it is a list.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "trainer/build/builtins.h"
#include "trainer/recipe/recipe_options.h"
#include "trainer/recipe/settings.h"

namespace limbeck::test {

using RecipeKeys = std::vector<std::pair<std::string, std::string>>;

inline recipe::Settings recipe_settings(const RecipeKeys& keys) {
  recipe::OptionTable table;
  recipe::declare_recipe_options(table);
  table.add(
      {.name = "device", .kind = recipe::OptionKind::kDevice, .fallback = "cpu", .help = "As every command has it."});
  std::vector<recipe::Flag> flags;
  for (const auto& [name, value] : keys) flags.push_back({.name = name, .spelled = name, .value = value});
  return recipe::Settings(table, nullptr, flags);
}

// What ships with Limbeck.
inline const Registries& builtin_registries() {
  static const auto* registries = [] {
    auto* made = new Registries;
    build::register_builtins(*made);
    return made;
  }();
  return *registries;
}

}  // namespace limbeck::test
