#include "modules/text/jinja/methods.h"

#include <algorithm>
#include <iterator>

#include "modules/text/jinja/arguments.h"
#include "modules/text/jinja/loop_state.h"

namespace limbeck::text::jinja {
namespace {

using Names = std::initializer_list<const char*>;

bool is_one_of(const std::string& name, Names names) {
  return std::any_of(names.begin(), names.end(), [&](const char* known) { return name == known; });
}

MethodKind kind_among(const std::string& name, Names callable, Names mutating, Names lacking) {
  if (is_one_of(name, callable)) return MethodKind::kCallable;
  if (is_one_of(name, mutating)) return MethodKind::kMutates;
  return is_one_of(name, lacking) ? MethodKind::kUnsupported : MethodKind::kNone;
}

MethodKind text_method(const Value& of, const std::string& name) {
  const Names kLackingMethods = {"casefold",  "encode",       "expandtabs", "format_map",  "isascii",
                                 "isdecimal", "isidentifier", "isnumeric",  "isprintable", "istitle",
                                 "maketrans", "swapcase",     "translate"};
  const Names kTextMethods = {"capitalize", "center",       "count",        "endswith", "find",       "format",
                              "index",      "isalnum",      "isalpha",      "isdigit",  "islower",    "isspace",
                              "isupper",    "join",         "ljust",        "lower",    "lstrip",     "partition",
                              "replace",    "removeprefix", "removesuffix", "rfind",    "rindex",     "rjust",
                              "rpartition", "rsplit",       "rstrip",       "split",    "splitlines", "startswith",
                              "strip",      "title",        "upper",        "zfill"};
  const MethodKind kind = kind_among(name, kTextMethods, {}, kLackingMethods);
  if (!is_markup(of)) return kind;
  // MarkupSafe's texts have methods of their own.
  return kind != MethodKind::kNone || is_one_of(name, {"unescape", "striptags", "escape"}) ? MethodKind::kUnsupported
                                                                                           : MethodKind::kNone;
}

Value call_dict_method(Work& work, const Value& of, const std::string& name, const Arguments& arguments) {
  const DictData& data = **of.as<Dict>();
  if (name == "get") {
    if (!arguments.named.empty()) work.refuse("dict.get() takes no keyword arguments");
    const Bound bound(work, "dict.get", arguments, {"key", "default"}, 1);
    if (!hashable(work, bound.value(0))) work.refuse("unhashable type: '" + type_name(bound.value(0)) + "'");
    const Value* found = find(work, data, bound.value(0));
    return found != nullptr ? *found : bound.value(1);
  }
  const Bound none(work, "dict." + name, arguments, {});
  if (name == "copy") return of;
  Items items;
  work.make(data.entries.size() * sizeof(Value));
  for (const auto& [key, value] : data.entries) {
    if (name == "items")
      items.push_back(sequence(work, {key, value}, SequenceKind::kTuple));
    else
      items.push_back(name == "keys" ? key : value);
  }
  return sequence(work, std::move(items),
                  name == "items"  ? SequenceKind::kPairs
                  : name == "keys" ? SequenceKind::kKeys
                                   : SequenceKind::kValues);
}

Value call_sequence_method(Work& work, const Value& of, const std::string& name, const Arguments& arguments) {
  const SequenceData& data = **of.as<Sequence>();
  if (!arguments.named.empty()) work.refuse(name + "() takes no keyword arguments");
  if (name == "copy") {
    const Bound none(work, "list.copy", arguments, {});
    return of;
  }
  const Bound bound(work, name, arguments, {"value"}, 1);
  const auto is_value = [&](const Value& item) { return equal(work, item, bound.value(0)); };
  if (name == "count")
    return Value(Value::Held(static_cast<int64_t>(std::count_if(data.items.begin(), data.items.end(), is_value))));
  const auto found = std::find_if(data.items.begin(), data.items.end(), is_value);
  if (found == data.items.end()) work.refuse(to_repr(work, bound.value(0)) + " is not in the " + type_name(of));
  return Value(Value::Held(static_cast<int64_t>(std::distance(data.items.begin(), found))));
}

Value call_loop_method(Work& work, LoopState& loop, const std::string& name, const Arguments& arguments) {
  if (!arguments.named.empty()) work.refuse("loop." + name + "() takes no keyword arguments");
  if (name == "changed")
    return Value(Value::Held(loop.changed(sequence(work, arguments.positional, SequenceKind::kTuple))));
  if (arguments.positional.empty()) work.refuse("loop.cycle() without items");
  return arguments.positional[static_cast<size_t>(loop.index0()) % arguments.positional.size()];
}

}  // namespace

MethodKind method_kind(const Value& of, const std::string& name) {
  if (of.is<Text>()) return text_method(of, name);
  if (of.is<Dict>())
    return kind_among(name, {"copy", "get", "items", "keys", "values"},
                      {"clear", "pop", "popitem", "setdefault", "update"}, {"fromkeys"});
  if (const auto* items = of.as<Sequence>()) {
    switch ((*items)->kind) {
      case SequenceKind::kList:
        return kind_among(name, {"copy", "count", "index"},
                          {"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"}, {});
      case SequenceKind::kTuple:
        return kind_among(name, {"count", "index"}, {}, {});
      case SequenceKind::kRange:
        return kind_among(name, {"count", "index"}, {}, {"start", "step", "stop"});
      default:
        return kind_among(name, {}, {}, {"isdisjoint", "mapping"});
    }
  }
  if (of.is<bool>() || of.is<int64_t>())
    return kind_among(name, {}, {},
                      {"as_integer_ratio", "bit_count", "bit_length", "conjugate", "denominator", "from_bytes", "imag",
                       "numerator", "real", "to_bytes"});
  if (of.is<double>())
    return kind_among(name, {}, {}, {"as_integer_ratio", "conjugate", "fromhex", "hex", "imag", "is_integer", "real"});
  if (const auto* function = of.as<Function>(); function != nullptr && (*function)->macro != nullptr)
    return kind_among(name, {}, {},
                      {"arguments", "caller", "catch_kwargs", "catch_varargs", "explicit_caller", "name"});
  return MethodKind::kNone;
}

Value call_method(Evaluator& evaluator, const Value& of, const std::string& name, const Arguments& arguments) {
  Work& work = evaluator.work();
  if (of.is<Text>()) return call_text_method(work, of, name, arguments);
  if (of.is<Dict>()) return call_dict_method(work, of, name, arguments);
  if (of.is<Sequence>()) return call_sequence_method(work, of, name, arguments);
  return call_loop_method(work, **of.as<std::shared_ptr<LoopState>>(), name, arguments);
}

}  // namespace limbeck::text::jinja
