// map, select and their like: as lazy as Jinja's, which matters where a namespace changes meanwhile.
#include <map>

#include "modules/text/jinja/arguments.h"
#include "modules/text/jinja/filters.h"
#include "modules/text/jinja/lookup.h"
#include "modules/text/jinja/python_text.h"

namespace limbeck::text::jinja {
namespace {

const Value* named(const Arguments& arguments, const char* name) {
  for (const auto& [known, value] : arguments.named) {
    if (known == name) return &value;
  }
  return nullptr;
}

// A path's value, where each step that is undefined becomes the default.
Value path_or(Work& work, const Value& item, const Value& path, const Value& fallback) {
  const std::string* names = text_of(path);
  if (fallback.is<None>() || names == nullptr) {
    Value value = get_path(work, item, path);
    return value.is<Undefined>() && !fallback.is<None>() ? fallback : value;
  }
  Value value = item;
  for (const std::string& name : split_at(*names, ".", -1)) {
    value = get_path(work, value, text(work, name));
    if (value.is<Undefined>()) value = fallback;
  }
  return value;
}

Value mapped(Evaluator& evaluator, const Value& item, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Value* path = arguments.positional.empty() ? named(arguments, "attribute") : nullptr;
  if (path != nullptr) {
    for (const auto& [name, value] : arguments.named) {
      if (name != "attribute" && name != "default") work.refuse("map has no argument " + name);
    }
    const Value* fallback = named(arguments, "default");
    return path_or(work, item, *path, fallback == nullptr ? Value(None{}) : *fallback);
  }
  if (arguments.positional.empty()) work.refuse("map wanted the name of a filter, or attribute=");
  const std::string* name = text_of(arguments.positional[0]);
  if (name == nullptr) work.refuse("map wanted the name of a filter, got a " + type_name(arguments.positional[0]));
  Arguments rest = arguments;
  rest.positional.erase(rest.positional.begin());
  return evaluator.filter(*name, item, rest);
}

// What `make` finds in what is left of `value`, which is looked at when the first item is asked for; empty of what is
// false.
template <class Make>
Value lazily(Work& work, const Value& value, Make make) {
  Next next;
  return iterator(
      work,
      [&work, value, make, next]() mutable -> std::optional<Value> {
        if (!truth(value)) return std::nullopt;
        if (!next) next = iterate(work, value);
        return make(next);
      },
      depth_of(value));
}

Value map_filter(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  return lazily(evaluator.work(), value, [&evaluator, arguments](Next& next) -> std::optional<Value> {
    const auto item = next();
    if (!item) return std::nullopt;
    return mapped(evaluator, *item, arguments);
  });
}

bool chosen(Evaluator& evaluator, const Value& item, const Arguments& arguments, bool by_attribute) {
  Work& work = evaluator.work();
  const size_t offset = by_attribute ? 1 : 0;
  if (arguments.positional.size() < offset) work.refuse("wanted the name of an attribute");
  const Value value = by_attribute ? get_path(work, item, arguments.positional[0]) : item;
  if (arguments.positional.size() == offset) return truth(value);
  const std::string* name = text_of(arguments.positional[offset]);
  if (name == nullptr) work.refuse("wanted the name of a test, got a " + type_name(arguments.positional[offset]));
  Arguments rest = arguments;
  rest.positional.erase(rest.positional.begin(), rest.positional.begin() + static_cast<std::ptrdiff_t>(offset + 1));
  return evaluator.test(*name, value, rest);
}

template <bool kWanted, bool kByAttribute>
Value choose(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  return lazily(evaluator.work(), value, [&evaluator, arguments](Next& next) -> std::optional<Value> {
    while (auto item = next()) {
      if (chosen(evaluator, *item, arguments, kByAttribute) == kWanted) return item;
    }
    return std::nullopt;
  });
}

}  // namespace

Filter find_choosing_filter(const std::string& name) {
  static const std::map<std::string, Filter> kFilters = {
      {"map", map_filter},
      {"reject", choose<false, false>},
      {"rejectattr", choose<false, true>},
      {"select", choose<true, false>},
      {"selectattr", choose<true, true>},
  };
  const auto found = kFilters.find(name);
  return found == kFilters.end() ? nullptr : found->second;
}

}  // namespace limbeck::text::jinja
