// One command of the program: what it is called, which options it adds, what it does. A new command is one file with
// one function that returns a Command, and one line in builtin_commands() (commands.cpp); list_command.cpp is the
// example.
#pragma once
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "trainer/cli/console/console.h"
#include "trainer/recipe/option_table.h"
#include "trainer/recipe/settings.h"
#include "trainer/registry.h"

namespace limbeck::cli {

struct Operand {
  std::string name;  // as it stands in the usage line: RECIPE, WHAT
  std::string help;
  bool required = true;
  std::vector<std::string> words = {};  // when not empty, the ones accepted
};

// What a running command is given. It fills `result`, which --json writes when the command returns.
struct Invocation {
  const recipe::Settings& settings;
  const std::vector<std::string>& operands;
  const Registries& registries;
  Console& console;
  int width;  // columns of the terminal on standard output, 0 when it is none
  nlohmann::ordered_json result = nlohmann::ordered_json::object();
  bool speaks = true;  // false on all ranks but the first: the result is printed and written once
};

struct Command {
  std::string name;
  std::string summary;  // one line in `limbeck --help`
  std::string example;  // a whole line, at the head of its --help
  // The first operand is a recipe: every recipe key is an option, and the settings hold the recipe's values.
  bool takes_recipe = false;
  // It does tensor work: the allocator is tuned before the first tensor exists.
  bool computes = false;
  bool joins_ranks = false;                                // as many processes as a launcher starts run it together
  std::vector<Operand> operands = {};                      // after RECIPE
  std::function<void(recipe::OptionTable&)> declare = {};  // options of its own; may be empty
  std::function<void(Invocation&)> run = {};               // throws limbeck::Error
};

// The options of `command`, its own, the recipe's and those every command has.
recipe::OptionTable options_of(const Command& command);

// Of a command that says how good a student is, whose head is as it was drawn.
void warn_of_untrained_head(Invocation& call, const recipe::Settings& settings);

// The text of `limbeck COMMAND --help`.
std::string help_of(const Command& command, unsigned width);

}  // namespace limbeck::cli
