// limbeck list: the names a recipe may use, builtin and from plug-ins.
#include <fmt/format.h>

#include "trainer/cli/commands/command.h"
#include "trainer/cli/console/text_table.h"
#include "trainer/recipe/spellings.h"

namespace limbeck::cli {
namespace {

const std::vector<std::string> kKinds = {"models", "objectives", "adapters", "quantizers", "optimizers", "aliases"};

std::string rendered(const std::vector<NameList::Entry>& entries, int width) {
  TextTable table({{"name"}, {"what it is"}});
  bool any_summary = false;
  std::string names;
  for (const auto& entry : entries) {
    table.add_row({entry.name, entry.summary});
    any_summary = any_summary || !entry.summary.empty();
    names += entry.name + "\n";
  }
  return any_summary ? table.render(width) : names;
}

void run_list(Invocation& call) {
  const bool all = call.operands.empty();
  const std::vector<std::string> kinds = all ? kKinds : call.operands;
  for (const std::string& kind : kinds) {
    const auto entries = kind == "aliases" ? recipe::spellings() : call.registries.find(kind)->entries();
    auto json = nlohmann::ordered_json::array();
    for (const auto& entry : entries) json.push_back({{"name", entry.name}, {"summary", entry.summary}});
    call.result[kind] = json;
    if (all) call.console.result((kind == kinds.front() ? "" : "\n") + kind + ":");
    call.console.result(rendered(entries, call.width));
  }
}

}  // namespace

Command list_command() {
  return {
      .name = "list",
      .summary =
          "What a recipe may name: models, objectives, adapters, quantizers, optimizers; other trainers' spellings.",
      .example = "limbeck list objectives",
      .operands = {{"WHAT", "The kind to list; every kind when left out.", false, kKinds}},
      .run = run_list};
}

}  // namespace limbeck::cli
