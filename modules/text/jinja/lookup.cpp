#include "modules/text/jinja/lookup.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "modules/text/jinja/loop_state.h"
#include "modules/text/jinja/methods.h"
#include "modules/text/jinja/python_text.h"

namespace limbeck::text::jinja {
namespace {

Value unsafe(const Value& of, const std::string& name) {
  return undefined("access to attribute " + python_quoted(name) + " of " + python_quoted(type_name(of)) +
                   " object is unsafe.");
}

Value no_attribute(const Value& of, const std::string& name) {
  return undefined(fmt::format("'{} object' has no attribute {}", type_name(of), python_quoted(name)));
}

Value method(Work& work, const Value& of, const std::string& name) {
  work.make(sizeof(FunctionData));
  auto function = std::make_shared<FunctionData>();
  function->name = name;
  function->self = of;
  if (depth_of(of) >= work.limits().nesting) work.refuse("values within values too deep");
  return Value(Function(std::move(function)));
}

// What Python's getattr finds, safe or not; none when there is no such attribute.
std::optional<Value> attribute(Work& work, const Value& of, const std::string& name) {
  if (const auto* space = of.as<std::shared_ptr<Namespace>>()) {
    for (const auto& [known, value] : (*space)->names) {
      if (known == name) return name.front() == '_' ? unsafe(of, name) : value;
    }
    return std::nullopt;
  }
  if (const auto* loop = of.as<std::shared_ptr<LoopState>>()) {
    if (auto value = (*loop)->attribute(name)) return value;
    if (name == "cycle" || name == "changed") return method(work, of, name);
    return std::nullopt;
  }
  if (name.size() > 4 && name.starts_with("__") && name.ends_with("__")) return unsafe(of, name);
  switch (method_kind(of, name)) {
    case MethodKind::kNone:
      return std::nullopt;
    case MethodKind::kMutates:
      return unsafe(of, name);
    case MethodKind::kCallable:
      return method(work, of, name);
    case MethodKind::kUnsupported:
      work.refuse_unsupported("the attribute " + name + " of a " + type_name(of));
  }
  return std::nullopt;
}

const Value* entry(Work& work, const Value& of, const Value& key) {
  const auto* entries = of.as<Dict>();
  return entries == nullptr || !hashable(work, key) ? nullptr : find(work, **entries, key);
}

std::optional<Value> element(Work& work, const Value& of, const Value& key) {
  const auto index = integer_of(key);
  if (!index) return std::nullopt;
  if (const std::string* string = text_of(of)) {
    work.step(string->size() / 16);
    const std::u32string all = characters(*string);
    const auto size = static_cast<int64_t>(all.size());
    const int64_t at = *index < 0 ? *index + size : *index;
    if (at < 0 || at >= size) return std::nullopt;
    return text(work, from_characters(all.substr(static_cast<size_t>(at), 1)), is_markup(of));
  }
  const auto* items = of.as<Sequence>();
  if (items == nullptr || (*items)->kind > SequenceKind::kRange) return std::nullopt;
  const auto size = static_cast<int64_t>((*items)->items.size());
  const int64_t at = *index < 0 ? *index + size : *index;
  if (at < 0 || at >= size) return std::nullopt;
  return (*items)->items[static_cast<size_t>(at)];
}

struct Steps {
  int64_t start, count, stride;
};

// Python's slice.indices, as a count.
Steps steps_of(Work& work, int64_t size, const Value& start, const Value& stop, const Value& step) {
  const auto bound = [&](const Value& value) -> std::optional<int64_t> {
    if (value.is<None>()) return std::nullopt;
    if (value.is<Undefined>()) refuse_undefined(work, value);
    const auto number = integer_of(value);
    if (!number) work.refuse("a slice's bound is a " + type_name(value) + ", wanted an int or none");
    return number;
  };
  const int64_t stride = bound(step).value_or(1);
  if (stride == 0) work.refuse("a slice's step is 0");
  const int64_t low = stride < 0 ? -1 : 0, high = stride < 0 ? size - 1 : size;
  const auto within = [&](std::optional<int64_t> value, int64_t fallback) {
    if (!value) return fallback;
    return std::clamp(*value < 0 ? *value + size : *value, low, high);
  };
  const int64_t from = within(bound(start), stride < 0 ? high : low);
  const int64_t to = within(bound(stop), stride < 0 ? low : high);
  return {from, static_cast<int64_t>(steps_between(from, to, stride)), stride};
}

}  // namespace

uint64_t steps_between(int64_t start, int64_t stop, int64_t stride) {
  if (stride > 0 ? start >= stop : start <= stop) return 0;
  // Unsigned, where differences of any two and the least of all strides have their place.
  const auto from = static_cast<uint64_t>(start), to = static_cast<uint64_t>(stop);
  const uint64_t distance = stride > 0 ? to - from : from - to;
  const uint64_t width = stride > 0 ? static_cast<uint64_t>(stride) : 0 - static_cast<uint64_t>(stride);
  return (distance - 1) / width + 1;
}

Value get_attribute(Work& work, const Value& of, const std::string& name) {
  if (of.is<Undefined>()) refuse_undefined(work, of);
  if (auto value = attribute(work, of, name)) return *value;
  if (const Value* value = of.is<Dict>() ? entry(work, of, text(work, name)) : nullptr) return *value;
  return no_attribute(of, name);
}

Value get_item(Work& work, const Value& of, const Value& key) {
  if (of.is<Undefined>()) refuse_undefined(work, of);
  if (const Value* value = entry(work, of, key)) return *value;
  if (auto value = element(work, of, key)) return *value;
  const std::string* name = text_of(key);
  if (name == nullptr) return undefined(type_name(of) + " object has no element " + to_repr(work, key));
  if (auto value = name->empty() ? std::nullopt : attribute(work, of, *name)) return *value;
  return no_attribute(of, *name);
}

Value slice(Work& work, const Value& of, const Value& start, const Value& stop, const Value& step) {
  if (of.is<Undefined>()) refuse_undefined(work, of);
  if (const std::string* string = text_of(of)) {
    work.step(string->size() / 16);
    work.make(string->size() * sizeof(char32_t));
    const std::u32string all = characters(*string);
    const Steps steps = steps_of(work, static_cast<int64_t>(all.size()), start, stop, step);
    std::u32string out;
    for (int64_t i = 0; i < steps.count; ++i) out += all[static_cast<size_t>(steps.start + i * steps.stride)];
    return text(work, from_characters(out), is_markup(of));
  }
  const auto* items = of.as<Sequence>();
  if (items == nullptr || (*items)->kind > SequenceKind::kRange)
    work.refuse(quoted_type(of) + " object cannot be sliced");
  if ((*items)->kind == SequenceKind::kRange) work.refuse_unsupported("a slice of a range");
  const Steps steps = steps_of(work, static_cast<int64_t>((*items)->items.size()), start, stop, step);
  Items out;
  work.step(static_cast<size_t>(steps.count) / 16);
  for (int64_t i = 0; i < steps.count; ++i)
    out.push_back((*items)->items[static_cast<size_t>(steps.start + i * steps.stride)]);
  return sequence(work, std::move(out), (*items)->kind);
}

Value get_path(Work& work, const Value& of, const Value& path) {
  const std::string* names = text_of(path);
  if (names == nullptr) return path.is<None>() ? of : get_item(work, of, path);
  Value value = of;
  for (const std::string& name : split_at(*names, ".", -1)) {
    const bool digits =
        !name.empty() && std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; });
    bool too_big = false;
    const auto number = digits ? parse_integer(name, 10, too_big) : std::nullopt;
    value = get_item(work, value, number ? Value(Value::Held(*number)) : text(work, name));
  }
  return value;
}

}  // namespace limbeck::text::jinja
