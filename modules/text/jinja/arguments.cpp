#include "modules/text/jinja/arguments.h"

#include <fmt/format.h>

#include <cstring>

namespace limbeck::text::jinja {

Bound::Bound(Work& work, std::string what, const Arguments& arguments, std::initializer_list<const char*> names,
             size_t required)
    : work_(work), what_(std::move(what)), names_(names), values_(names.size()) {
  if (arguments.positional.size() > names_.size()) {
    work_.refuse(
        fmt::format("{} takes at most {} arguments, got {}", what_, names_.size(), arguments.positional.size()));
  }
  for (size_t i = 0; i < arguments.positional.size(); ++i) values_[i] = arguments.positional[i];
  for (const auto& [name, value] : arguments.named) {
    size_t at = 0;
    while (at < names_.size() && name != names_[at]) ++at;
    if (at == names_.size()) work_.refuse(fmt::format("{} has no argument {}", what_, name));
    if (values_[at]) work_.refuse(fmt::format("{} got its argument {} twice", what_, name));
    values_[at] = value;
  }
  for (size_t i = 0; i < required; ++i) {
    if (!values_[i]) work_.refuse(fmt::format("{} lacks its argument {}", what_, names_[i]));
  }
}

Value Bound::value(size_t index, Value fallback) const { return values_[index] ? *values_[index] : fallback; }

bool Bound::flag(size_t index, bool fallback) const { return values_[index] ? truth(*values_[index]) : fallback; }

int64_t Bound::integer(size_t index, int64_t fallback) const {
  if (!values_[index]) return fallback;
  const auto number = integer_of(*values_[index]);
  if (!number) {
    work_.refuse(
        fmt::format("{}: the argument {} is a {}, wanted an int", what_, names_[index], type_name(*values_[index])));
  }
  return *number;
}

std::optional<std::string> Bound::text(size_t index) const {
  if (!values_[index] || values_[index]->is<None>()) return std::nullopt;
  return required_text(index);
}

std::string Bound::required_text(size_t index) const {
  const std::string* string = text_of(*values_[index]);
  if (string == nullptr) {
    work_.refuse(
        fmt::format("{}: the argument {} is a {}, wanted a str", what_, names_[index], type_name(*values_[index])));
  }
  return *string;
}

}  // namespace limbeck::text::jinja
