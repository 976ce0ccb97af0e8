// Freezes every option of every command: a renamed key or a changed default breaks somebody's recipe, so it must be
// seen. After a change that is meant: LIMBECK_UPDATE_GOLDEN=1 trainer_test --gtest_filter='CommandOptions.*', and look
// at the diff.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "trainer/cli/commands/commands.h"
#include "trainer/recipe/recipe_options.h"

namespace limbeck::cli {
namespace {

std::string every_option() {
  recipe::OptionTable recipe_keys;
  recipe::declare_recipe_options(recipe_keys);
  std::string out = "recipe\n" + recipe_keys.inventory();
  for (const Command& command : builtin_commands()) {
    const auto table = options_of(command);
    out += fmt::format("\nlimbeck {}{}", command.name, command.takes_recipe ? " RECIPE" : "");
    for (const Operand& operand : command.operands)
      out += operand.required ? " " + operand.name : fmt::format(" [{}]", operand.name);
    out += "\n";
    std::istringstream lines(table.inventory());
    for (std::string line; std::getline(lines, line);) {
      const std::string name = line.substr(2, line.find(' ') - 2);
      if (!command.takes_recipe || !recipe_keys.find(name)) out += line + "\n";
    }
  }
  return out;
}

TEST(CommandOptions, AreTheFrozenOnes) {
  const std::string path = LIMBECK_GOLDEN "/options.txt";
  if (std::getenv("LIMBECK_UPDATE_GOLDEN")) std::ofstream(path) << every_option();
  std::ifstream file(path);
  std::stringstream golden;
  golden << file.rdbuf();
  EXPECT_EQ(every_option(), golden.str());
}

TEST(CommandOptions, EveryCommandHasTheCommonOnesAndHelpForAll) {
  for (const Command& command : builtin_commands()) {
    const auto table = options_of(command);
    for (const char* name : {"help", "json", "plugin", "device", "threads", "quiet"}) {
      EXPECT_NE(table.find(name), nullptr) << command.name << " " << name;
    }
    const std::string help = help_of(command, 100);
    EXPECT_NE(help.find("usage: limbeck " + command.name), std::string::npos);
    for (const auto& option : table.options()) {
      EXPECT_FALSE(option.help.empty()) << option.name;
      EXPECT_NE(help.find(option.name), std::string::npos) << option.name;
    }
    EXPECT_FALSE(command.summary.empty());
    EXPECT_NE(help.find("\nexample: " + command.example + "\n"), std::string::npos) << help;
    EXPECT_NE(command.example.find("limbeck " + command.name), std::string::npos);
    EXPECT_TRUE(command.run) << command.name;
  }
}

}  // namespace
}  // namespace limbeck::cli
