#include "trainer/cli/app.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <torch/version.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <utility>

#include "kernels/operator/cuda_library.h"
#include "modules/errors.h"
#include "modules/memory/allocator.h"
#include "trainer/build/attention_library.h"
#include "trainer/build/builtins.h"
#include "trainer/cli/commands/commands.h"
#include "trainer/cli/commands/output_paths.h"
#include "trainer/cli/console/json_result.h"
#include "trainer/cli/worker_threads.h"
#include "trainer/parallel/ranks/join.h"
#include "trainer/plugin/plugin_loader.h"
#include "trainer/recipe/message.h"

namespace limbeck::cli {
namespace {

// The values of a flag before the table exists: plug-ins may add to it, and a failure to parse still goes to --json.
std::vector<std::string> values_of(const std::string& flag, const std::vector<std::string>& arguments) {
  std::vector<std::string> out;
  for (size_t i = 0; i < arguments.size() && arguments[i] != "--"; ++i) {
    const bool next_is_value = i + 1 < arguments.size() && arguments[i + 1].rfind("--", 0) != 0;
    if (arguments[i] == flag && next_is_value) {
      out.push_back(arguments[++i]);
    } else if (arguments[i].rfind(flag + "=", 0) == 0) {
      out.push_back(arguments[i].substr(flag.size() + 1));
    }
  }
  return out;
}

unsigned help_width() {
  const int width = terminal_width(STDOUT_FILENO);
  return width == 0 ? 100 : static_cast<unsigned>(std::clamp(width, 60, 120));
}

// Shards of data stay open, and many systems allow 1,024 files to a process until it asks for more.
void allow_open_files() {
  constexpr rlim_t kEnough = 1 << 16;
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= kEnough) return;
  limit.rlim_cur = std::min(limit.rlim_max, kEnough);
  ::setrlimit(RLIMIT_NOFILE, &limit);  // where it is refused, opening says so
}

bool asks_for_help(const std::string& argument) { return argument == "--help" || argument == "-h"; }

void print(const std::string& text) { std::cout << text << std::flush; }

// Every argument, or what follows its =, as the path it may be; --json's own left out.
std::vector<NamedPath> typed_paths(const std::vector<std::string>& arguments) {
  std::vector<NamedPath> found;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& one = arguments[i];
    if (one == "--json") {
      ++i;
    } else if (const size_t equals = one.find('='); one.starts_with("--") && equals != one.npos) {
      if (one.substr(0, equals) != "--json") found.push_back({one.substr(0, equals), one.substr(equals + 1)});
    } else if (!one.empty()) {
      found.push_back({i > 0 && arguments[i - 1].starts_with("--") ? arguments[i - 1] : "RECIPE", one});
    }
  }
  return found;
}

// CUDA comes into the process before its first backward, be it one on meta: the engine counts the devices then, and
// once. One that cannot be used is refused where models are loaded.
void load_cuda_if_asked(const recipe::Settings& settings) {
  for (const recipe::Option& option : settings.table().options()) {
    if (option.kind != recipe::OptionKind::kDevice) continue;
    const std::optional<c10::Device> device = settings.device(option.name);
    if (device && device->is_cuda() && kernels::cuda_available()) return;
  }
}

// RECIPE leaves the operands; the rest is checked against what the command declared.
std::string take_operands(const Command& command, std::vector<std::string>& operands) {
  std::string recipe;
  if (command.takes_recipe) {
    if (operands.empty()) {
      throw UsageError(fmt::format("limbeck {0}: RECIPE is missing: type limbeck {0} recipes/NAME.ini", command.name));
    }
    recipe = operands.front();
    operands.erase(operands.begin());
  }
  for (size_t i = 0; i < command.operands.size(); ++i) {
    const Operand& wanted = command.operands[i];
    if (i >= operands.size()) {
      if (!wanted.required) break;
      throw UsageError(fmt::format("limbeck {}: {} is missing; 'limbeck {} --help' shows how it is used", command.name,
                                   wanted.name, command.name));
    }
    const auto& words = wanted.words;
    if (!words.empty() && std::find(words.begin(), words.end(), operands[i]) == words.end()) {
      throw UsageError(fmt::format("limbeck {}: {} \"{}\" is unknown, wanted {}", command.name, wanted.name,
                                   recipe::shown(operands[i]), recipe::any_of(words)));
    }
  }
  if (operands.size() > command.operands.size()) {
    throw UsageError(
        fmt::format("limbeck {0}: \"{1}\" is one operand too many; options start with --, 'limbeck {0} --help' "
                    "shows them",
                    command.name, recipe::shown(operands[command.operands.size()])));
  }
  return recipe;
}

}  // namespace

App::App(std::vector<std::string> arguments) : arguments_(std::move(arguments)), commands_(builtin_commands()) {
  const auto colours = values_of("--color", arguments_);
  if (!colours.empty()) choose_colour(colours.back());
  const auto targets = values_of("--json", arguments_);
  if (!targets.empty()) json_target_ = targets.back();
}

std::string App::overview() const {
  std::string out =
      "usage: limbeck COMMAND [RECIPE] [--option=value ...]\n\n"
      "Distils large language models into small ones; every dtype and device is decided, and checked, before step "
      "1.\n\n"
      "Commands:\n";
  for (const Command& command : commands_) out += fmt::format("  {:<11} {}\n", command.name, command.summary);
  return out +
         "\n'limbeck COMMAND --help' lists the options of a command, 'limbeck --version' tells the version.\n"
         "Exit codes: 0 done, 2 usage or recipe, 3 input data, 4 checkpoint or weights, 5 numeric or out of memory,\n"
         "6 input/output, 7 distributed, 75 stopped by a signal after saving, 1 a fault in limbeck itself.\n";
}

const Command& App::command_named(const std::string& name) const {
  std::vector<std::string> known;
  for (const Command& command : commands_) {
    if (command.name == name) return command;
    known.push_back(command.name);
  }
  const std::string guess = recipe::did_you_mean(name, known);
  throw UsageError(fmt::format("\"{}\" is no command{}; 'limbeck --help' lists them", recipe::shown(name),
                               guess.empty() ? ", wanted " + recipe::any_of(known) : ", " + guess));
}

int App::run() {
  if (arguments_.empty()) {
    std::cerr << overview();
    return static_cast<int>(ExitCode::kUsage);
  }
  std::string first = arguments_.front();
  std::vector<std::string> rest(arguments_.begin() + 1, arguments_.end());
  if (first == "--version") {
    print(fmt::format("limbeck {} (LibTorch {})\n", LIMBECK_VERSION, TORCH_VERSION));
  } else if (asks_for_help(first) || (first == "help" && rest.empty())) {
    print(overview());
  } else if (first == "help") {
    print(help_of(command_named(rest.front()), help_width()));
  } else if (first.rfind('-', 0) == 0) {
    throw UsageError(fmt::format("{}: options come after the command: limbeck COMMAND {}", recipe::shown(first),
                                 recipe::shown(first)));
  } else {
    run_command(command_named(first), std::move(rest));
  }
  std::cout.flush();
  if (!std::cout) throw IoError("standard output: cannot write the result; is the disk full, or the reader gone?");
  return static_cast<int>(ExitCode::kDone);
}

// What a command runs with, once all that was typed is understood.
struct App::Prepared {
  recipe::Settings settings;
  std::vector<std::string> operands;
};

void App::run_command(const Command& command, std::vector<std::string> arguments) {
  if (std::any_of(arguments.begin(), arguments.end(), asks_for_help)) {
    print(help_of(command, help_width()));
    return;
  }
  std::optional<Prepared> ready;
  try {
    ready.emplace(prepared(command, arguments));
    if (command.computes) load_cuda_if_asked(ready->settings);
    build::choose_attention(ready->settings);
  } catch (...) {
    if (command.joins_ranks) parallel::refuse_together(std::current_exception());
    throw;
  }
  if (command.computes) start_worker_threads();
  execute(command, ready->settings, ready->operands);
}

App::Prepared App::prepared(const Command& command, const std::vector<std::string>& arguments) {
  if (!json_target_.empty()) {
    const std::string target =
        std::exchange(json_target_, "");  // a target that cannot be written gets no failure either
    check_json_target(target);
    // A failure, too, is written there, so it is compared with all that was typed, before anything is understood.
    if (target != "-" && !is_json_result(target)) check_output_file({"--json", target}, typed_paths(arguments));
    json_target_ = target;
  }
  if (command.computes) memory::tune_allocator();
  allow_open_files();
  build::register_builtins(registries_);
  for (const std::string& library : values_of("--plugin", arguments)) plugin::load_plugin(library, registries_);

  const recipe::OptionTable table = options_of(command);
  recipe::ParsedCommandLine parsed = table.parse(arguments, "limbeck " + command.name);
  const std::string recipe_path = take_operands(command, parsed.operands);
  std::optional<recipe::RecipeFile> file;
  if (command.takes_recipe) file = recipe::RecipeFile::read(recipe_path);
  recipe::Settings settings(table, file ? &*file : nullptr, parsed.flags);
  if (settings.integer("threads") > 0) set_worker_threads(static_cast<int>(settings.integer("threads")));
  check_json_is_no_input(settings, recipe_path);
  check_outputs(settings, recipe_path);
  return {std::move(settings), std::move(parsed.operands)};
}

// What a recipe names is known only now; then not even the refusal may be written there.
void App::check_json_is_no_input(const recipe::Settings& settings, const std::string& recipe_path) {
  if (json_target_.empty() || json_target_ == "-") return;
  const std::string target = std::exchange(json_target_, "");
  if (!is_json_result(target)) check_output_file({"--json", target}, inputs_of(settings, recipe_path));
  json_target_ = target;
}

void App::execute(const Command& command, const recipe::Settings& settings, const std::vector<std::string>& operands) {
  Console console(std::cout, std::cerr, settings.enabled("quiet"), json_target_ != "-",
                  {.out = coloured(STDOUT_FILENO), .err = coloured(STDERR_FILENO)});
  Invocation call{settings, operands, registries_, console, terminal_width(STDOUT_FILENO)};
  command.run(call);
  if (json_target_.empty() || !call.speaks) return;
  write_json_result(json_target_, {{"command", command.name},
                                   {"limbeck", LIMBECK_VERSION},
                                   {"exit_code", 0},
                                   {"result", call.result},
                                   {"settings", settings_as_json(settings)}});
}

void App::report_failure(const Failure& failure) const {
  if (json_target_.empty() || failure.told_elsewhere) return;
  write_json_result(json_target_, {{"command", arguments_.front()},
                                   {"limbeck", LIMBECK_VERSION},
                                   {"exit_code", failure.exit_code},
                                   {"error", failure.message}});
}

}  // namespace limbeck::cli
