#include "trainer/cli/commands.h"

namespace limbeck::cli {

// Each in the file of its name: list_command.cpp.
Command list_command();

std::vector<Command> builtin_commands() {
  return {
      list_command(),
  };
}

}  // namespace limbeck::cli
