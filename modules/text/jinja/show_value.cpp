// str(), repr() and the names of types.
#include <fmt/format.h>

#include "modules/text/jinja/loop_state.h"
#include "modules/text/jinja/python_text.h"
#include "modules/text/jinja/value.h"

namespace limbeck::text::jinja {
namespace {

std::string joined(Work& work, const Items& items) {
  std::string out;
  for (const Value& item : items) {
    if (!out.empty()) out += ", ";
    out += to_repr(work, item);
  }
  return out;
}

std::string show_sequence(Work& work, const SequenceData& data) {
  switch (data.kind) {
    case SequenceKind::kList:
      return fmt::format("[{}]", joined(work, data.items));
    case SequenceKind::kTuple:
      return fmt::format("({}{})", joined(work, data.items), data.items.size() == 1 ? "," : "");
    case SequenceKind::kRange:
      return data.stride == 1 ? fmt::format("range({}, {})", data.start, data.stop)
                              : fmt::format("range({}, {}, {})", data.start, data.stop, data.stride);
    case SequenceKind::kKeys:
      return "dict_keys([" + joined(work, data.items) + "])";
    case SequenceKind::kValues:
      return "dict_values([" + joined(work, data.items) + "])";
    case SequenceKind::kPairs:
      return "dict_items([" + joined(work, data.items) + "])";
  }
  return "";
}

std::string show_entries(Work& work, const Entries& entries) {
  std::string out = "{";
  for (const auto& [key, value] : entries) {
    if (out.size() > 1) out += ", ";
    out += to_repr(work, key) + ": " + to_repr(work, value);
  }
  return out + "}";
}

std::string show_namespace(Work& work, const Namespace& space) {
  std::string out = "<Namespace {";
  bool first = true;
  for (const auto& [name, value] : space.names) {
    out += (first ? "" : ", ") + python_quoted(name) + ": " + to_repr(work, value);
    first = false;
  }
  return out + "}>";
}

}  // namespace

std::string type_name(const Value& value) {
  static constexpr const char* kSequences[] = {"list", "tuple", "range", "dict_keys", "dict_values", "dict_items"};
  if (const auto* items = value.as<Sequence>()) return kSequences[static_cast<size_t>((*items)->kind)];
  if (is_markup(value)) return "Markup";
  static constexpr const char* kNames[] = {"Undefined", "NoneType",  "bool",      "int",      "float",      "str", "",
                                           "dict",      "generator", "Namespace", "function", "LoopContext"};
  return kNames[value.held().index()];
}

std::string quoted_type(const Value& value) { return fmt::format("'{}'", type_name(value)); }

std::string to_repr(Work& work, const Value& value) {
  const Work::Level level(work);
  work.step();
  if (value.is<Undefined>()) return "Undefined";
  if (const auto* string = value.as<Text>()) {
    work.make((*string)->bytes.size());
    return (*string)->markup ? "Markup(" + python_quoted((*string)->bytes) + ")" : python_quoted((*string)->bytes);
  }
  return to_text(work, value);
}

std::string to_text(Work& work, const Value& value) {
  work.step();
  if (value.is<Undefined>()) return "";
  if (value.is<None>()) return "None";
  if (const auto* flag = value.as<bool>()) return *flag ? "True" : "False";
  if (const auto* number = value.as<int64_t>()) return std::to_string(*number);
  if (const auto* number = value.as<double>()) return shown(*number);
  std::string out;
  if (const auto* string = value.as<Text>()) {
    out = (*string)->bytes;
  } else if (const auto* items = value.as<Sequence>()) {
    out = show_sequence(work, **items);
  } else if (const auto* entries = value.as<Dict>()) {
    out = show_entries(work, (*entries)->entries);
  } else if (const auto* names = value.as<std::shared_ptr<Namespace>>()) {
    out = show_namespace(work, **names);
  } else if (const auto* loop = value.as<std::shared_ptr<LoopState>>()) {
    out = fmt::format("<LoopContext {}/{}>", (*loop)->index0() + 1, (*loop)->length());
  } else if (const auto* function = value.as<Function>(); function != nullptr && (*function)->macro != nullptr) {
    out = "<Macro " + python_quoted((*function)->name) + ">";
  } else {
    // Python shows these by their address, so no template can want it.
    work.refuse("a " + type_name(value) + " has no text of its own, wanted its call or `|list`");
  }
  work.make(out.size());
  return out;
}

}  // namespace limbeck::text::jinja
