#include "trainer/cli/commands/commands.h"

namespace limbeck::cli {

// Each in the file of its name: list_command.cpp.
Command check_command();
Command completion_command();
Command consolidate_command();
Command eval_command();
Command export_gguf_command();
Command forward_command();
Command generate_command();
Command import_gguf_command();
Command list_command();
Command merge_command();
Command profile_command();
Command tokenize_command();
Command train_command();
Command quantize_command();
Command sweep_command();
Command unmerge_command();
Command verify_command();

std::vector<Command> builtin_commands() {
  return {
      check_command(),   train_command(),       eval_command(),        forward_command(),  generate_command(),
      merge_command(),   unmerge_command(),     consolidate_command(), quantize_command(), sweep_command(),
      profile_command(), export_gguf_command(), import_gguf_command(), list_command(),     tokenize_command(),
      verify_command(),  completion_command(),
  };
}

}  // namespace limbeck::cli
