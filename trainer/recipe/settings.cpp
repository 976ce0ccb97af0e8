#include "trainer/recipe/settings.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "modules/errors.h"
#include "modules/io/hub_cache.h"
#include "trainer/recipe/message.h"
#include "trainer/recipe/value.h"

namespace limbeck::recipe {
namespace {

std::string section_of(const std::string& name) {
  const size_t dot = name.rfind('.');
  return dot == std::string::npos ? "" : name.substr(0, dot);
}

std::string key_in_section(const std::string& name) {
  const size_t dot = name.rfind('.');
  return dot == std::string::npos ? name : name.substr(dot + 1);
}

// Under [student], where to put a key that exists elsewhere: the user wrote `seed` or `teacher.dtype` there.
std::string place_hint(const OptionTable& table, const std::string& key) {
  for (size_t dot = key.find('.'); dot != std::string::npos; dot = key.find('.', dot + 1)) {
    const Option* meant = table.find(key.substr(dot + 1));
    if (!meant || meant->flag_only) continue;
    const std::string section = section_of(meant->name);
    return section.empty() ? fmt::format("{} stands before the first [section]", meant->name)
                           : fmt::format("{} stands under [{}]", key_in_section(meant->name), section);
  }
  return "";
}

[[noreturn]] void refuse_key(const OptionTable& table, const RecipeFile& file, const RecipeEntry& entry) {
  std::string hint = place_hint(table, entry.key);
  if (hint.empty()) hint = table.guess(entry.key, [](const Option& option) { return !option.flag_only; });
  throw UsageError(fmt::format("{}:{}: unknown key {}{}; 'limbeck check --help' lists every key", shown(file.name()),
                               entry.line, shown(entry.key), hint.empty() ? "" : ", " + hint));
}

void check_sections(const OptionTable& table, const RecipeFile& file) {
  std::vector<std::string> known;
  for (const std::string& key : table.recipe_keys()) {
    const std::string section = section_of(key);
    if (!section.empty() && (known.empty() || known.back() != section)) known.push_back(section);
  }
  for (const auto& section : file.sections()) {
    if (table.has_section(section.name)) continue;
    const std::string guess = did_you_mean(section.name, known);
    throw UsageError(fmt::format("{}:{}: unknown section [{}], {}", shown(file.name()), section.line,
                                 shown(section.name), guess.empty() ? "wanted one of " + any_of(known) : guess));
  }
}

// The option's value that was given under this spelling; none: a shorthand that says nothing.
std::optional<std::string> meant(const Option& option, const std::string& spelled, const std::string& value,
                                 const std::string& shown_as) {
  const Shorthand* shorthand = find_shorthand(option, spelled);
  if (shorthand == nullptr) return value;
  const Said said = said_by(*shorthand, value);
  if (!said.fault.empty()) throw UsageError(fmt::format("{}: {}", shown_as, said.fault));
  return said.value.empty() ? std::nullopt : std::optional(said.value);
}

}  // namespace

Settings::Settings(const OptionTable& table, const RecipeFile* file, const std::vector<Flag>& flags) : table_(table) {
  for (const Option& option : table_.options()) {
    auto& values = values_[option.name];
    const bool starts_empty =
        option.kind == OptionKind::kList && (option.fallback.empty() || option.fallback == "none");
    if (!starts_empty) values.push_back({option.fallback, Origin::of_default()});
  }
  if (file) {
    recipe_name_ = file->name();
    take_recipe(*file);
  }
  take_flags(flags);
}

void Settings::take_recipe(const RecipeFile& file) {
  check_sections(table_, file);
  std::map<std::string, const RecipeEntry*> seen;
  const std::filesystem::path base = file.folder();
  for (const RecipeEntry& entry : file.entries()) {
    const Option* option = table_.find(entry.key);
    if (!option) refuse_key(table_, file, entry);
    if (option->flag_only) {
      throw UsageError(fmt::format("{}:{}: {} is a flag and no recipe key; remove the line and pass --{}",
                                   shown(file.name()), entry.line, entry.key, entry.key));
    }
    const std::string shown_as =
        fmt::format("{}:{}: {} = {}", shown(file.name()), entry.line, entry.key, shown(entry.value));
    const auto value = meant(*option, entry.key, entry.value, shown_as);
    if (!value) continue;
    const auto [first, fresh] = seen.emplace(option->name, &entry);
    if (!fresh && option->kind != OptionKind::kList && !repeats(*option, {entry.key, first->second->key}, *value)) {
      const std::string as = first->second->key == entry.key ? "" : fmt::format(" (there as {})", first->second->key);
      throw UsageError(fmt::format("{}:{}: {} is set already on line {}{}; keep one of the two", shown(file.name()),
                                   entry.line, entry.key, first->second->line, as));
    }
    put(*option, *value, Origin::of_line(file.name(), entry.line), shown_as, base);
  }
}

void Settings::take_flags(const std::vector<Flag>& flags) {
  std::map<std::string, const Flag*> seen;
  for (const Flag& flag : flags) {
    const Option& option = table_.at(flag.name);
    const std::string shown_as = fmt::format("--{}={}", flag.spelled, shown(flag.value));
    const auto value = meant(option, flag.spelled, flag.value, shown_as);
    if (!value) continue;
    const auto [first, fresh] = seen.emplace(flag.name, &flag);
    if (!fresh && option.kind != OptionKind::kList &&
        !repeats(option, {flag.spelled, first->second->spelled}, *value)) {
      throw UsageError(fmt::format("--{}={}: given already as --{}={}; keep one of the two", flag.spelled,
                                   shown(flag.value), first->second->spelled, shown(first->second->value)));
    }
    put(option, *value, Origin::of_command_line(flag.spelled), shown_as, std::filesystem::current_path());
  }
}

// Two spellings of which one is a shorthand, and both say the same: use_fp16 beside mixed_precision.
bool Settings::repeats(const Option& option, const std::pair<std::string, std::string>& spelled,
                       const std::string& value) const {
  const bool shorthand = find_shorthand(option, spelled.first) || find_shorthand(option, spelled.second);
  return shorthand && values_.at(option.name).back().text == value;
}

void Settings::put(const Option& option, const std::string& text, const Origin& origin, const std::string& shown_as,
                   const std::filesystem::path& base) {
  const std::string fault = value_fault(option, text);
  if (!fault.empty()) throw UsageError(fmt::format("{}: {}", shown_as, fault));
  auto& values = values_[option.name];
  if (option.kind == OptionKind::kList) {
    // What a list starts with is its default: the first value given takes its place.
    if (text == "none") {
      values.clear();
    } else {
      std::erase_if(values, [](const Value& v) { return v.origin.kind == Origin::Kind::kDefault; });
      values.push_back({text, origin});
    }
    return;
  }
  if (text.empty() && option.fallback.empty()) {  // `model =` takes a value back, as if none had been given
    values = {{"", Origin::of_default()}};
    return;
  }
  const bool is_path = option.kind == OptionKind::kPath && !text.empty();
  values = {{is_path ? place(option, text, base) : text, origin}};
}

// A model that is missing is said by path_here(), when it is wanted: a flag may still name another.
std::string Settings::place(const Option& option, const std::string& text, const std::filesystem::path& base) {
  const std::filesystem::path local = (base / text).lexically_normal();
  unfound_.erase(option.name);
  std::error_code ignored;
  if (!option.on_hub || std::filesystem::exists(local, ignored)) return local.string();
  const auto name = io::parse_hub_name(text);
  if (!name) return local.string();
  if (const auto snapshot = io::find_snapshot(*name)) return snapshot->string();
  unfound_[option.name] = io::absent_snapshot(*name, local);
  return local.string();
}

const Value& Settings::single(const std::string& name, OptionKind kind) const {
  const Option& option = table_.at(name);
  if (option.kind != kind) throw std::logic_error("option " + name + " is read as another kind than it is declared");
  return values_.at(option.name).front();
}

bool Settings::given(const std::string& name) const {
  const auto& values = values_.at(table_.at(name).name);
  return !values.empty() && values.front().origin.kind != Origin::Kind::kDefault;
}

const std::string& Settings::text(const std::string& name) const {
  const Option& option = table_.at(name);
  if (option.kind == OptionKind::kList)
    throw std::logic_error("option " + name + " is a list and is read as one value");
  return values_.at(option.name).front().text;
}

std::filesystem::path Settings::path(const std::string& name) const { return single(name, OptionKind::kPath).text; }

std::filesystem::path Settings::path_here(const std::string& name) const {
  const auto missing = unfound_.find(table_.at(name).name);
  if (missing != unfound_.end()) throw WeightsError(fmt::format("{} {}", missing->second, where(name)));
  return path(name);
}

int64_t Settings::integer(const std::string& name) const {
  return to_integer(single(name, OptionKind::kInteger).text).value();
}

double Settings::number(const std::string& name) const {
  return to_number(single(name, OptionKind::kNumber).text).value();
}

bool Settings::enabled(const std::string& name) const {
  const std::string& value = single(name, OptionKind::kSwitch).text;
  return !value.empty() && to_bool(value).value();
}

std::optional<c10::ScalarType> Settings::dtype(const std::string& name) const {
  return to_dtype(single(name, OptionKind::kDtype).text);
}

std::optional<c10::Device> Settings::device(const std::string& name) const {
  return to_device(single(name, OptionKind::kDevice).text);
}

c10::Device Settings::device_of(const std::string& role) const {
  const std::optional<c10::Device> own = device(role + ".device");
  return own ? *own : *device("device");
}

Count Settings::count(const std::string& name) const {
  const Value& value = single(name, OptionKind::kCount);
  return parse_count(value.text, table_.at(name).units).count;
}

const std::vector<Value>& Settings::values(const std::string& name) const {
  const Option& option = table_.at(name);
  if (option.kind != OptionKind::kList)
    throw std::logic_error("option " + name + " is one value and is read as a list");
  return values_.at(option.name);
}

std::vector<std::string> Settings::list(const std::string& name) const {
  std::vector<std::string> out;
  for (const Value& value : values(name)) out.push_back(value.text);
  return out;
}

std::string Settings::required_text(const std::string& name) const {
  const std::string& value = text(name);
  if (!value.empty()) return value;
  const Option& option = table_.at(name);
  const std::string section = section_of(option.name), what = accepted_values(option);
  if (recipe_name_.empty() || option.flag_only) {
    throw UsageError(fmt::format("--{0} is missing: add --{0}={1}", option.name, what));
  }
  const std::string line = fmt::format("`{} = {}`", key_in_section(option.name), what);
  throw UsageError(fmt::format("{}: {} is not set: add {} {}, or pass --{}={}", shown(recipe_name_), option.name, line,
                               section.empty() ? "at the top" : fmt::format("under [{}]", section), option.name, what));
}

std::filesystem::path Settings::required_path(const std::string& name) const {
  required_text(name);
  return path_here(name);
}

Origin Settings::origin(const std::string& name) const {
  const auto& values = values_.at(table_.at(name).name);
  return values.empty() ? Origin::of_default() : values.back().origin;
}

std::string Settings::where(const std::string& name) const {
  const Option& option = table_.at(name);
  const Origin from = origin(name);
  switch (from.kind) {
    case Origin::Kind::kFile:
      return fmt::format("({})", from.to_string());
    case Origin::Kind::kCommandLine:
      return fmt::format("(--{})", from.flag);
    default:
      return fmt::format("(default of {})", option.name);
  }
}

Settings Settings::with(const std::string& name, const std::string& value) const {
  Settings changed = *this;
  changed.take_flags({{.name = name, .spelled = name, .value = value}});
  return changed;
}

std::string Settings::to_ini(bool with_origins) const {
  std::vector<std::string> sections = {""};  // keys without a section come first, whatever the order of declaration
  for (const Option& option : table_.options()) {
    const std::string section = section_of(option.name);
    if (std::find(sections.begin(), sections.end(), section) == sections.end()) sections.push_back(section);
  }
  std::string out;
  for (const std::string& section : sections) {
    std::string body;
    for (const Option& option : table_.options()) {
      if (option.flag_only || section_of(option.name) != section) continue;
      const std::string key = key_in_section(option.name);
      const auto& values = values_.at(option.name);
      const bool emptied = option.kind == OptionKind::kList && values.empty() && !option.fallback.empty();
      if (emptied) body += fmt::format("{} = none\n", key);
      for (const Value& value : values) {
        if (value.text.empty() && option.fallback.empty()) continue;
        const std::string line = fmt::format("{} = {}", key, written_value(value.text));
        body +=
            with_origins ? fmt::format("{:<40}  # {}\n", line, value.origin.to_string()) : fmt::format("{}\n", line);
      }
    }
    if (body.empty()) continue;
    if (!section.empty()) out += fmt::format("{}[{}]\n", out.empty() ? "" : "\n", section);
    out += body;
  }
  return out;
}

}  // namespace limbeck::recipe
