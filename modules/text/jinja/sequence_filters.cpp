// Filters that take a sequence apart or put it in another order.
#include <algorithm>
#include <map>

#include "modules/text/jinja/arguments.h"
#include "modules/text/jinja/filters.h"
#include "modules/text/jinja/lookup.h"
#include "modules/text/jinja/python_text.h"

namespace limbeck::text::jinja {
namespace {

// What Python's reversed() goes through, from the end; none when it refuses.
std::optional<Items> backwards(Work& work, const Value& value) {
  if (!value.is<Undefined>() && !value.is<Text>() && !value.is<Sequence>() && !value.is<Dict>()) return std::nullopt;
  Items items = listed(work, value);
  std::reverse(items.begin(), items.end());
  return items;
}

Next over(Items items) {
  return [items = std::move(items), at = size_t{0}]() mutable -> std::optional<Value> {
    if (at == items.size()) return std::nullopt;
    return items[at++];
  };
}

Value first(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  const Bound none(evaluator.work(), "first", arguments, {});
  const auto item = iterate(evaluator.work(), value)();
  return item ? *item : undefined("No first item, sequence was empty.");
}

Value last(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Bound none(work, "last", arguments, {});
  const auto items = backwards(work, value);
  if (!items) work.refuse(quoted_type(value) + " object is not reversible, wanted a list");
  return items->empty() ? undefined("No last item, sequence was empty.") : items->front();
}

Value list_filter(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  const Bound none(evaluator.work(), "list", arguments, {});
  return sequence(evaluator.work(), listed(evaluator.work(), value));
}

Value reverse(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Bound none(work, "reverse", arguments, {});
  if (value.is<Text>()) return slice(work, value, Value(None{}), Value(None{}), Value(Value::Held(int64_t{-1})));
  if (auto items = backwards(work, value)) return iterator(work, over(std::move(*items)), depth_of(value));
  if (!iterable(value)) work.refuse("reverse: argument must be iterable, got a " + type_name(value));
  Items items = listed(work, value);
  std::reverse(items.begin(), items.end());
  return sequence(work, std::move(items));
}

Value pairs(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Bound none(work, "items", arguments, {});
  return iterator(
      work,
      [&work, value, at = size_t{0}]() mutable -> std::optional<Value> {
        if (value.is<Undefined>()) return std::nullopt;
        const auto* entries = value.as<Dict>();
        if (entries == nullptr) work.refuse("Can only get item pairs from a mapping, got a " + type_name(value));
        if (at == (*entries)->entries.size()) return std::nullopt;
        const auto& [key, held] = (*entries)->entries[at++];
        return sequence(work, {key, held}, SequenceKind::kTuple);
      },
      depth_of(value));
}

// By keys that were made before; equal ones keep their order, also backwards.
Items sorted(Work& work, const Items& items, const Items& keys, bool backwards_wanted) {
  std::vector<size_t> order(items.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return backwards_wanted ? less(work, keys[b], keys[a], "<") : less(work, keys[a], keys[b], "<");
  });
  Items out;
  for (const size_t at : order) out.push_back(items[at]);
  return out;
}

Value dictsort(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Bound bound(work, "dictsort", arguments, {"case_sensitive", "by", "reverse"});
  const std::string by = bound.given(1) ? to_text(work, bound.value(1)) : "key";
  if (by != "key" && by != "value") work.refuse("dictsort: you can only sort by either \"key\" or \"value\"");
  if (value.is<Undefined>()) refuse_undefined(work, value);
  const auto* entries = value.as<Dict>();
  if (entries == nullptr) work.refuse("dictsort wanted a dict, got a " + type_name(value));
  Items items, keys;
  for (const auto& [key, held] : (*entries)->entries) {
    items.push_back(sequence(work, {key, held}, SequenceKind::kTuple));
    keys.push_back(sort_key(work, by == "key" ? key : held, Value(None{}), bound.flag(0, false)));
  }
  return sequence(work, sorted(work, items, keys, bound.flag(2, false)));
}

Value sort(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Bound bound(work, "sort", arguments, {"reverse", "case_sensitive", "attribute"});
  const Value path = bound.value(2);
  const std::string* paths = text_of(path);
  const std::vector<std::string> parts = paths == nullptr ? std::vector<std::string>{} : split_at(*paths, ",", -1);
  const Items items = listed(work, value);
  Items keys;
  for (const Value& item : items) {
    Items key;
    for (const std::string& part : parts) key.push_back(sort_key(work, item, text(work, part), bound.flag(1, false)));
    if (parts.empty()) key.push_back(sort_key(work, item, path, bound.flag(1, false)));
    keys.push_back(sequence(work, std::move(key)));
  }
  return sequence(work, sorted(work, items, keys, bound.flag(0, false)));
}

Value unique(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Bound bound(work, "unique", arguments, {"case_sensitive", "attribute"});
  const bool case_sensitive = bound.flag(0, false);
  const Value path = bound.value(1);
  auto seen = std::make_shared<Entries>();
  Next next;
  return iterator(
      work,
      [&work, value, path, case_sensitive, seen, next]() mutable -> std::optional<Value> {
        if (!next) next = iterate(work, value);
        while (auto item = next()) {
          const size_t known = seen->size();
          work.make(sizeof(Value) * 2);
          put(work, *seen, sort_key(work, *item, path, case_sensitive), Value());
          if (seen->size() > known) return item;
        }
        return std::nullopt;
      },
      depth_of(value));
}

}  // namespace

Value sort_key(Work& work, const Value& item, const Value& path, bool case_sensitive) {
  Value key = path.is<None>() ? item : get_path(work, item, path);
  const std::string* string = case_sensitive ? nullptr : text_of(key);
  if (string == nullptr) return key;
  return text(work, lower(*string), is_markup(key));
}

Filter find_sequence_filter(const std::string& name) {
  static const std::map<std::string, Filter> kFilters = {
      {"dictsort", dictsort}, {"first", first},     {"items", pairs}, {"last", last},
      {"list", list_filter},  {"reverse", reverse}, {"sort", sort},   {"unique", unique},
  };
  const auto found = kFilters.find(name);
  return found == kFilters.end() ? nullptr : found->second;
}

}  // namespace limbeck::text::jinja
