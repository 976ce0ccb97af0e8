#include "trainer/cli/commands/command.h"

#include <fmt/format.h>

#include "trainer/build/attention_library.h"
#include "trainer/recipe/recipe_options.h"

namespace limbeck::cli {
namespace {

using recipe::Option;
using recipe::OptionKind;

void declare_common_options(recipe::OptionTable& table) {
  table.group("Every command");
  table.add({.name = "device",
             .kind = OptionKind::kDevice,
             .fallback = "cpu",
             .help = "Where tensors live unless an option says otherwise. Never chosen silently."});
  table.add({.name = build::kFlashAttention3,
             .kind = OptionKind::kPath,
             .help = "A library of FlashAttention 3 (flash_attn_3/_C.so of its wheels): it computes attention of half "
                     "types, heads up to 192 wide, on GPUs of compute capability 9.0.",
             .value_name = "LIB.so"});
  table.add({.name = "threads",
             .kind = OptionKind::kInteger,
             .fallback = "0",
             .help = "CPU threads; 0: as many as there are cores.",
             .range = {0, 4096}});
  table.add({.name = "json",
             .help = "Write the result, or the error, to FILE as JSON; - for standard output.",
             .value_name = "FILE",
             .writes = recipe::Writes::kFile,
             .flag_only = true});
  table.add({.name = "plugin",
             .kind = OptionKind::kList,
             .help = "A shared library that registers more model families, objectives and adapters. May be repeated.",
             .value_name = "LIB.so",
             .flag_only = true});
  table.add(
      {.name = "quiet", .kind = OptionKind::kSwitch, .help = "Results, warnings and errors only.", .flag_only = true});
  table.add({.name = "color",
             .kind = OptionKind::kChoice,
             .fallback = "auto",
             .help = "Colour of errors, warnings and what passed; auto: on a terminal, unless NO_COLOR is set.",
             .words = {"auto", "always", "never"},
             .flag_only = true});
  table.add({.name = "help", .kind = OptionKind::kSwitch, .help = "This text.", .letter = 'h', .flag_only = true});
}

}  // namespace

recipe::OptionTable options_of(const Command& command) {
  recipe::OptionTable table;
  if (command.declare) {
    table.group("Options of " + command.name);
    command.declare(table);
  }
  if (command.takes_recipe) recipe::declare_recipe_options(table);
  declare_common_options(table);
  return table;
}

void warn_of_untrained_head(Invocation& call, const recipe::Settings& settings) {
  if (settings.text("student.init") != "new_head") return;
  call.console.warning(
      fmt::format("the head is as it was drawn, untrained (student.init = new_head {}): --student.init=weights takes "
                  "the folder's",
                  settings.where("student.init")));
}

std::string help_of(const Command& command, unsigned width) {
  std::vector<Operand> operands = command.operands;
  if (command.takes_recipe) operands.insert(operands.begin(), {"RECIPE", "An .ini file; README.md shows its form."});
  std::string usage = "usage: limbeck " + command.name, about;
  for (const Operand& operand : operands) {
    usage += operand.required ? " " + operand.name : " [" + operand.name + "]";
    about += fmt::format("  {:<10} {}\n", operand.name, operand.help);
    if (!operand.words.empty()) about += fmt::format("  {:<10} one of {}\n", "", recipe::any_of(operand.words));
  }
  std::string out =
      fmt::format("{} [--option=value ...]\nexample: {}\n\n{}\n\n", usage, command.example, command.summary);
  if (!about.empty()) out += about + "\n";
  if (command.takes_recipe) {
    out +=
        "Every option is also a recipe key, except --json, --plugin, --quiet, --help and who a rank is "
        "(--parallel.rank\n"
        "to --parallel.master): --student.dtype=bfloat16 is `dtype = bfloat16` under [student]. A flag wins over the\n"
        "recipe, the recipe over the default (in brackets).\n\n";
  }
  return out + options_of(command).help(width);
}

}  // namespace limbeck::cli
