// Every command that ships with Limbeck, in the order of `limbeck --help`.
#pragma once
#include <vector>

#include "trainer/cli/commands/command.h"

namespace limbeck::cli {

std::vector<Command> builtin_commands();

}  // namespace limbeck::cli
