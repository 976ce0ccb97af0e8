// What a plug-in implements: a shared library, built against these headers and linked to nothing that limbeck does not
// link, that registers model families, objectives and adapters when `--plugin LIB.so` loads it. What it registers is
// chosen and used as what ships with Limbeck is, in every command: a family by "architectures" of a config.json, a
// divergence by objective.divergence, an adapter by adapter.kind and by "peft_type" of its folder; `limbeck list` shows
// them. A command that reads what was made with a plug-in (eval, generate, merge, train --resume) needs it as well.
//
//   #include "trainer/plugin/plugin.h"
//   LIMBECK_PLUGIN(host) {
//     host.add_family({.name = "mine", .architectures = {"MineForCausalLM"}, .read = read_mine, .prefix = "model."});
//     host.add_objective("mine", "what it does", make_mine);
//     host.add_adapter({.name = "mine", .summary = "what it does", .on_linear = make_mine_on_linear});
//   }
//
// tests/out_of_tree/ is a whole one, with a layer's own mixer of tokens in place of attention.
#pragma once
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>

#include "modules/adapters/added/added_kind.h"
#include "modules/models/family/family.h"
#include "trainer/objective/head/divergence.h"
#include "trainer/registry.h"

namespace limbeck {

// One number of the sizes of what a plug-in reaches: one that was built against headers of another layout is refused by
// it, not found out by a crash. The first is raised where something changes and no size does.
constexpr int layout_number(std::initializer_list<size_t> sizes) {
  uint32_t number = 2166136261U;
  for (const size_t size : sizes) number = (number ^ static_cast<uint32_t>(size)) * 16777619U;
  return static_cast<int>(number >> 1U);
}
inline constexpr int kPluginInterface = layout_number(
    {2, sizeof(Registries), sizeof(models::Family), sizeof(models::Architecture), sizeof(models::Layer),
     sizeof(models::LayerInput), sizeof(models::Taps), sizeof(models::TokenCache), sizeof(models::TokenMixer),
     sizeof(models::Linear), sizeof(models::Embedding), sizeof(models::ExpertStack), sizeof(models::LinearAdapter),
     sizeof(models::LayerAdapter), sizeof(precision::ContractModule), sizeof(precision::Precision),
     sizeof(adapters::AddedKind), sizeof(objective::Divergence), sizeof(objective::DivergenceOptions)});

// Every add_…: UsageError where the name is taken.
struct PluginHost {
  Registries& registries;

  void add_family(models::Family family) const { models::add_family(std::move(family)); }
  void add_objective(const std::string& name, const std::string& summary, objective::DivergenceFactory make) const {
    registries.of<objective::DivergenceFactory>("objectives").add(name, summary, std::move(make));
  }
  void add_adapter(adapters::AddedKind kind) const { adapters::add_adapter_kind(std::move(kind)); }
};

}  // namespace limbeck

#define LIMBECK_PLUGIN(host)                                                 \
  extern "C" const int limbeck_plugin_interface;                             \
  extern "C" const int limbeck_plugin_interface = limbeck::kPluginInterface; \
  extern "C" void limbeck_register_plugin(limbeck::PluginHost& host);        \
  void limbeck_register_plugin([[maybe_unused]] limbeck::PluginHost& host)
