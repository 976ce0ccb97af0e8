// limbeck completion: the script that lets bash complete commands, flags and values. Written from the option tables, so
// that it knows what this program knows; `cmake --install` puts it where bash-completion looks.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "trainer/cli/commands/command.h"
#include "trainer/cli/commands/commands.h"

namespace limbeck::cli {
namespace {

using recipe::Option;
using recipe::OptionKind;

// What stands behind the tables. Bash splits words at `=`, so a value may be a word of its own, with or without it.
constexpr const char* kBashScript = R"bash(
_limbeck() {
  local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]} flag= words
  COMPREPLY=()
  if [[ $COMP_CWORD -eq 1 ]]; then
    COMPREPLY=($(compgen -W "$(_limbeck_commands) --help --version" -- "$current"))
    return
  fi
  if [[ $current == = ]]; then
    flag=$before current=
  elif [[ $before == = ]]; then
    flag=${COMP_WORDS[COMP_CWORD-2]}
  elif [[ $before == --* && $current != -* ]]; then
    flag=$before
  fi
  if [[ $flag == --* ]]; then
    words=$(_limbeck_values "$command" "$flag")
    case $words in
      -) [[ $before == = || ${COMP_WORDS[COMP_CWORD]} == = ]] && words="true false" || flag= ;;
      /) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$current")); return ;;
    esac
    if [[ -n $flag ]]; then
      COMPREPLY=($(compgen -W "$words" -- "$current"))
      return
    fi
  fi
  if [[ $current == -* ]]; then
    COMPREPLY=($(compgen -W "$(_limbeck_flags "$command")" -- "$current"))
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
    return
  fi
  words=$(_limbeck_operands "$command")
  case $words in
    /*) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -X '!'"${words#/}" -- "$current") $(compgen -d -- "$current")) ;;
    *) COMPREPLY=($(compgen -W "$words" -- "$current")) ;;
  esac
}
complete -F _limbeck limbeck
)bash";

// A value's words; "/" for a file's name, "-" for a switch, which needs none, and nothing where anything may stand.
std::string offered_values(const Option& option) {
  if (option.kind == OptionKind::kSwitch) return "-";
  if (option.kind == OptionKind::kPath || option.name == "json" || option.name == "plugin") return "/";
  const char* devices = option.kind == OptionKind::kDevice ? " cpu cuda meta" : "";
  return fmt::format("{}{}", fmt::join(option.words, " "), devices);
}

std::string typed_flag(const Option& option) {
  return fmt::format("--{}{}", option.name, option.kind == OptionKind::kSwitch ? "" : "=");
}

std::string offered_operands(const Command& command) {
  if (command.takes_recipe) return "/*.ini";
  if (command.operands.empty()) return "";
  const std::vector<std::string>& words = command.operands.front().words;
  return words.empty() ? "/*" : fmt::format("{}", fmt::join(words, " "));
}

// A bash function that answers by the command, or by "command flag".
std::string script_function(const std::string& name, const std::string& key, const std::string& branches) {
  return fmt::format("{}() {{\n  case {} in\n{}  esac\n}}\n", name, key, branches);
}

std::string script_branch(const std::string& key, const std::string& words) {
  return words.empty() ? "" : fmt::format("    '{}') echo '{}' ;;\n", key, words);
}

std::string completion_script() {
  std::vector<std::string> names;
  std::string flags, values, operands;
  for (const Command& command : builtin_commands()) {
    names.push_back(command.name);
    const recipe::OptionTable table = options_of(command);
    std::vector<std::string> own;
    for (const Option& option : table.options()) {
      own.push_back(typed_flag(option));
      values += script_branch(fmt::format("{} --{}", command.name, option.name), offered_values(option));
    }
    flags += script_branch(command.name, fmt::format("{}", fmt::join(own, " ")));
    operands += script_branch(command.name, offered_operands(command));
  }
  return fmt::format(
      "# bash completion of limbeck {}, written by `limbeck completion`\n"
      "_limbeck_commands() {{ echo '{}'; }}\n{}{}{}{}",
      LIMBECK_VERSION, fmt::join(names, " "), script_function("_limbeck_flags", "$1", flags),
      script_function("_limbeck_values", "\"$1 $2\"", values), script_function("_limbeck_operands", "$1", operands),
      kBashScript);
}

}  // namespace

Command completion_command() {
  return {.name = "completion",
          .summary = "The script for bash that completes commands, flags and values: source <(limbeck completion)",
          .example = "source <(limbeck completion)",
          .run = [](Invocation& call) { call.console.result(completion_script()); }};
}

}  // namespace limbeck::cli
