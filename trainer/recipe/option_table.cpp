#include "trainer/recipe/option_table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <boost/program_options/errors.hpp>
#include <boost/program_options/options_description.hpp>
#include <boost/program_options/parsers.hpp>
#include <boost/program_options/positional_options.hpp>
#include <boost/program_options/value_semantic.hpp>
#include <limits>
#include <sstream>
#include <stdexcept>

#include "modules/errors.h"
#include "trainer/recipe/message.h"
#include "trainer/recipe/spellings.h"

namespace limbeck::recipe {
namespace {

namespace po = boost::program_options;

constexpr const char* kOperand = "(operand)";  // no option can be spelled like this

// Every value stays text here: its kind is checked where its origin is known (settings.cpp).
po::typed_value<std::string>* semantic(const Option& option) {
  const bool is_switch = option.kind == OptionKind::kSwitch;
  auto* value = po::value<std::string>()->value_name(is_switch ? " " : accepted_values(option));
  if (!is_switch && !option.fallback.empty()) value->default_value(option.fallback);
  return value;
}

std::string boost_name(const Option& option) {
  return option.letter == 0 ? option.name : fmt::format("{},{}", option.name, option.letter);
}

const char* kind_name(OptionKind kind) {
  static constexpr const char* kNames[] = {"text",   "path",  "integer", "number", "switch",
                                           "choice", "dtype", "device",  "count",  "list"};
  return kNames[static_cast<int>(kind)];
}

std::string range_text(const Option& option) {
  if (option.kind == OptionKind::kInteger) {
    const bool endless = option.range.high == std::numeric_limits<int64_t>::max();
    return fmt::format(" [{}, {}]", option.range.low, endless ? "..." : std::to_string(option.range.high));
  }
  if (option.kind == OptionKind::kNumber) {
    return fmt::format(" {}{}, {}{}", option.interval.above_low ? "(" : "[", option.interval.low, option.interval.high,
                       option.interval.below_high ? ")" : "]");
  }
  const std::string accepted = accepted_values(option);
  const bool tells = option.kind == OptionKind::kChoice || option.kind == OptionKind::kDtype ||
                     option.kind == OptionKind::kDevice || option.kind == OptionKind::kCount;
  return tells ? " " + accepted : "";
}

std::vector<std::string> other_spellings(const Option& option) {
  std::vector<std::string> out = option.aliases;
  for (const Shorthand& shorthand : option.shorthands) out.push_back(shorthand.name);
  return out;
}

// May stand alone, whatever follows.
bool is_switch(const Option& option, const std::string& spelled) {
  const Shorthand* shorthand = find_shorthand(option, spelled);
  if (shorthand == nullptr) return option.kind == OptionKind::kSwitch;
  return !shorthand->when_on.empty() || (shorthand->unit.empty() && !said_by(*shorthand, "true").value.empty());
}

// `--mixed_precision bf16`: a switch whose next word is one of its own.
bool takes_word(const Option& option, const std::string& spelled, const std::string& next) {
  const Shorthand* shorthand = find_shorthand(option, spelled);
  if (shorthand == nullptr) return false;
  return std::any_of(shorthand->words.begin(), shorthand->words.end(), [&](const auto& w) { return w.first == next; });
}

constexpr size_t kMostNamed = 4;

std::string last_part(const std::string& name) { return name.substr(name.rfind('.') + 1); }  // npos + 1 is 0

// Without the dashes and without "=value".
std::string bare(const std::string& token) {
  const size_t start = token.find_first_not_of('-');
  return start == std::string::npos ? token : token.substr(start, token.find('=') - start);
}

}  // namespace

void OptionTable::group(const std::string& title) { groups_.push_back({title, options_.size()}); }

void OptionTable::add(Option option) {
  add_spellings(option);
  std::vector<std::string> spellings = other_spellings(option);
  spellings.push_back(option.name);
  for (const std::string& spelling : spellings) {
    if (find(spelling)) throw std::logic_error("option " + spelling + " is declared twice");
  }
  if (!option.fallback.empty()) {
    const std::string fault = value_fault(option, option.fallback);
    if (!fault.empty()) throw std::logic_error("the default of option " + option.name + " is refused: " + fault);
  }
  if (groups_.empty()) group("Options");
  options_.push_back(std::move(option));
}

const Option* OptionTable::find(const std::string& name) const {
  for (const Option& option : options_) {
    if (option.name == name) return &option;
    if (std::find(option.aliases.begin(), option.aliases.end(), name) != option.aliases.end()) return &option;
    if (find_shorthand(option, name) != nullptr) return &option;
  }
  return nullptr;
}

const Option& OptionTable::at(const std::string& name) const {
  const Option* option = find(name);
  if (!option) throw std::logic_error("option " + name + " is not declared for this command");
  return *option;
}

std::vector<std::string> OptionTable::names() const {
  std::vector<std::string> out;
  for (const Option& option : options_) out.push_back(option.name);
  return out;
}

std::vector<std::string> OptionTable::recipe_keys() const {
  std::vector<std::string> out;
  for (const Option& option : options_) {
    if (!option.flag_only) out.push_back(option.name);
  }
  return out;
}

std::string OptionTable::guess(const std::string& wanted, const std::function<bool(const Option&)>& eligible) const {
  const std::string part = last_part(wanted);
  std::vector<std::string> named, known;  // named: whose last part it is, by any of their names
  for (const Option& option : options_) {
    if (!eligible(option)) continue;
    std::vector<std::string> spellings = other_spellings(option);
    spellings.insert(spellings.begin(), option.name);
    if (std::any_of(spellings.begin(), spellings.end(), [&](const auto& each) { return last_part(each) == part; })) {
      named.push_back(option.name);
    }
    known.insert(known.end(), spellings.begin(), spellings.end());
  }
  if (!named.empty() && named.size() <= kMostNamed) return fmt::format("did you mean {}?", any_of(named));
  return did_you_mean(wanted, known);
}

bool OptionTable::has_section(const std::string& section) const {
  const std::string prefix = section + ".";
  return std::any_of(options_.begin(), options_.end(), [&](const Option& o) { return o.name.rfind(prefix, 0) == 0; });
}

namespace {

[[noreturn]] void refuse(const std::string& message, const std::string& program) {
  throw UsageError(fmt::format("{}; '{} --help' lists every option", message, program));
}

bool is_long(const std::string& token) { return token.rfind("--", 0) == 0; }

// Boost would take the word after a bare switch, or another option, for the value: `--quiet my.ini`, `--dtype --quiet`.
// So a bare switch becomes --quiet=true, and a value that is missing is found here.
std::vector<std::string> with_switches_spelled_out(const std::vector<std::string>& arguments, const OptionTable& table,
                                                   const std::string& program) {
  std::vector<std::string> out;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& token = arguments[i];
    if (token == "--") {
      out.insert(out.end(), arguments.begin() + static_cast<std::ptrdiff_t>(i), arguments.end());
      break;
    }
    const Option* option = nullptr;
    if (is_long(token)) option = table.find(token.substr(2));
    for (const Option& each : table.options()) {
      if (each.letter != 0 && token == std::string{'-', each.letter}) option = &each;
    }
    if (!option) {
      out.push_back(token);
    } else if (is_long(token) && i + 1 < arguments.size() && takes_word(*option, token.substr(2), arguments[i + 1])) {
      out.push_back(fmt::format("{}={}", token, arguments[++i]));
    } else if (is_switch(*option, is_long(token) ? token.substr(2) : option->name)) {
      out.push_back(fmt::format("--{}=true", is_long(token) ? token.substr(2) : option->name));
    } else if (i + 1 == arguments.size() || is_long(arguments[i + 1])) {
      refuse(fmt::format("{}: the value is missing, wanted --{}={}", token, option->name, accepted_values(*option)),
             program);
    } else {
      out.push_back(token);
      out.push_back(arguments[++i]);
    }
  }
  return out;
}

po::parsed_options split(const std::vector<std::string>& arguments, const OptionTable& table,
                         const std::string& program) {
  po::options_description all;
  for (const Option& option : table.options()) {
    all.add_options()(boost_name(option).c_str(), semantic(option));
    for (const std::string& other : other_spellings(option)) all.add_options()(other.c_str(), semantic(option));
  }
  all.add_options()(kOperand, po::value<std::vector<std::string>>());
  po::positional_options_description operands;
  operands.add(kOperand, -1);

  using namespace po::command_line_style;  // no guessing: --student.d is nobody's option
  const int style =
      allow_long | long_allow_adjacent | long_allow_next | allow_short | allow_dash_for_short | short_allow_next;
  try {
    return po::command_line_parser(with_switches_spelled_out(arguments, table, program))
        .options(all)
        .positional(operands)
        .style(style)
        .run();
  } catch (const po::unknown_option& error) {
    const std::string name = bare(error.get_option_name());
    const std::string guess = table.guess(name, [](const Option&) { return true; });
    const std::string typed = error.get_option_name();
    refuse(
        fmt::format("{}: no such option{}", shown(typed.substr(0, typed.find('='))), guess.empty() ? "" : ", " + guess),
        program);
  } catch (const po::error_with_option_name& error) {
    const std::string name = bare(error.get_option_name());
    const Option* option = table.find(name);
    refuse(fmt::format("--{0}: the value is missing, wanted --{0}={1}", shown(name),
                       option ? accepted_values(*option) : "VALUE"),
           program);
  } catch (const po::error& error) {
    refuse(error.what(), program);
  }
}

}  // namespace

ParsedCommandLine OptionTable::parse(const std::vector<std::string>& arguments, const std::string& program) const {
  ParsedCommandLine parsed;
  for (const auto& item : split(arguments, *this, program).options) {
    if (item.string_key == kOperand) {
      parsed.operands.insert(parsed.operands.end(), item.value.begin(), item.value.end());
      continue;
    }
    const std::string spelled = item.string_key;
    parsed.flags.push_back({at(spelled).name, spelled, item.value.front()});
  }
  return parsed;
}

std::string OptionTable::help(unsigned width) const {
  std::ostringstream out;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const size_t end = g + 1 < groups_.size() ? groups_[g + 1].first : options_.size();
    if (groups_[g].first == end) continue;
    po::options_description group(groups_[g].title, width, width / 2);
    for (size_t i = groups_[g].first; i < end; ++i) {
      group.add_options()(boost_name(options_[i]).c_str(), semantic(options_[i]), options_[i].help.c_str());
    }
    out << (out.tellp() > 0 ? "\n" : "") << group;
  }
  return out.str();
}

std::string OptionTable::inventory() const {
  std::string out;
  for (const Option& option : options_) {
    out += fmt::format("--{} {}{}", option.name, kind_name(option.kind), range_text(option));
    if (!option.fallback.empty()) out += " = " + option.fallback;
    if (!option.aliases.empty()) out += fmt::format(" (also {})", fmt::join(option.aliases, ", "));
    for (const Shorthand& shorthand : option.shorthands) {
      if (!shorthand.words.empty()) {
        std::vector<std::string> pairs;
        for (const auto& [word, says] : shorthand.words) pairs.push_back(word + ": " + (says.empty() ? "-" : says));
        out += fmt::format(" ({} {})", shorthand.name, fmt::join(pairs, ", "));
        continue;
      }
      out += shorthand.unit.empty() ? fmt::format(" ({}: {})", shorthand.name, shorthand.when_on)
                                    : fmt::format(" ({}=N: N {})", shorthand.name, shorthand.unit);
    }
    if (option.flag_only) out += " (flag only)";
    out += '\n';
  }
  return out;
}

}  // namespace limbeck::recipe
