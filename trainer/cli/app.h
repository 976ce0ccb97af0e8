// One run of the program: finds the command, resolves its settings, runs it, writes the result. Throws what goes wrong;
// main() turns that into a message and an exit code.
#pragma once
#include <string>
#include <vector>

#include "modules/failure.h"
#include "trainer/cli/commands/command.h"
#include "trainer/registry.h"

namespace limbeck::cli {

class App {
 public:
  explicit App(std::vector<std::string> arguments);  // without the program's name

  int run();
  // The --json document of a run that failed; nothing without --json.
  void report_failure(const Failure& failure) const;

 private:
  void run_command(const Command& command, std::vector<std::string> arguments);
  struct Prepared;
  Prepared prepared(const Command& command, const std::vector<std::string>& arguments);
  void execute(const Command& command, const recipe::Settings& settings, const std::vector<std::string>& operands);
  void check_json_is_no_input(const recipe::Settings& settings, const std::string& recipe_path);
  const Command& command_named(const std::string& name) const;
  std::string overview() const;

  std::vector<std::string> arguments_;
  std::vector<Command> commands_;
  Registries registries_;
  std::string json_target_;
};

}  // namespace limbeck::cli
