#include "modules/text/jinja/value.h"

#include <algorithm>

#include "modules/text/characters/unicode.h"
#include "modules/text/jinja/loop_state.h"
#include "modules/text/jinja/python_text.h"

namespace limbeck::text::jinja {
namespace {

Next over_items(Work& work, std::shared_ptr<const Items> items) {
  return [&work, items = std::move(items), at = size_t{0}]() mutable -> std::optional<Value> {
    work.step();
    if (at == items->size()) return std::nullopt;
    return (*items)[at++];
  };
}

Next over_characters(Work& work, Text text) {
  return [&work, text = std::move(text), at = size_t{0}]() mutable -> std::optional<Value> {
    work.step();
    if (at == text->bytes.size()) return std::nullopt;
    const size_t from = at;
    next_character(text->bytes, at);
    return jinja::text(work, text->bytes.substr(from, at - from));
  };
}

void check_depth(Work& work, int depth) {
  if (depth > work.limits().nesting)
    work.refuse("values within values more than " + std::to_string(work.limits().nesting) + " deep");
}

}  // namespace

Value undefined(std::string why) { return Value(Undefined{std::make_shared<const std::string>(std::move(why))}); }

Value text(Work& work, std::string bytes, bool markup) {
  work.make(sizeof(TextData) + bytes.size());
  return Value(std::make_shared<const TextData>(TextData{std::move(bytes), markup}));
}

Value sequence(Work& work, Items items, SequenceKind kind) {
  work.make(sizeof(SequenceData) + items.size() * sizeof(Value));
  work.step(items.size() / 16);
  SequenceData data;
  data.kind = kind;
  for (const Value& item : items) data.depth = std::max(data.depth, depth_of(item) + 1);
  check_depth(work, data.depth);
  data.items = std::move(items);
  return Value(std::make_shared<const SequenceData>(std::move(data)));
}

Value dict(Work& work, Entries entries) {
  work.make(sizeof(DictData) + entries.size() * 2 * sizeof(Value));
  DictData data;
  for (const auto& [key, value] : entries) data.depth = std::max({data.depth, depth_of(key) + 1, depth_of(value) + 1});
  check_depth(work, data.depth);
  data.entries = std::move(entries);
  return Value(std::make_shared<const DictData>(std::move(data)));
}

Value iterator(Work& work, Next next, int source_depth) {
  work.make(128);
  check_depth(work, source_depth + 1);
  return Value(std::make_shared<Iterator>(Iterator{std::move(next), source_depth + 1}));
}

void put(Work& work, Entries& entries, const Value& key, Value value) {
  if (!hashable(work, key)) work.refuse("unhashable type: '" + type_name(key) + "' as the key of a dict");
  for (auto& [known, held] : entries) {
    work.step();
    if (!equal(work, known, key)) continue;
    held = std::move(value);
    return;
  }
  entries.emplace_back(key, std::move(value));
}

int depth_of(const Value& value) {
  if (const auto* items = value.as<Sequence>()) return (*items)->depth;
  if (const auto* entries = value.as<Dict>()) return (*entries)->depth;
  if (const auto* next = value.as<std::shared_ptr<Iterator>>()) return (*next)->depth;
  if (const auto* function = value.as<Function>()) return (*function)->self ? depth_of(*(*function)->self) + 1 : 0;
  return 0;
}

bool truth(const Value& value) {
  if (value.is<Undefined>() || value.is<None>()) return false;
  if (const auto* flag = value.as<bool>()) return *flag;
  if (const auto* number = value.as<int64_t>()) return *number != 0;
  if (const auto* number = value.as<double>()) return *number != 0;
  if (const auto* string = text_of(value)) return !string->empty();
  const auto size = length(value);
  return !size || *size != 0;
}

bool hashable(Work& work, const Value& value) {
  work.step();
  if (value.is<Dict>()) return false;
  const auto* items = value.as<Sequence>();
  if (items == nullptr) return true;
  if ((*items)->kind == SequenceKind::kRange) return true;
  return (*items)->kind == SequenceKind::kTuple && std::all_of((*items)->items.begin(), (*items)->items.end(),
                                                               [&](const Value& item) { return hashable(work, item); });
}

std::optional<size_t> length(const Value& value) {
  if (value.is<Undefined>()) return 0;
  if (const auto* string = value.as<Text>()) return count_characters((*string)->bytes);
  if (const auto* items = value.as<Sequence>()) return (*items)->items.size();
  if (const auto* entries = value.as<Dict>()) return (*entries)->entries.size();
  if (const auto* loop = value.as<std::shared_ptr<LoopState>>()) return static_cast<size_t>((*loop)->length());
  return std::nullopt;
}

bool iterable(const Value& value) {
  return value.is<Undefined>() || value.is<Text>() || value.is<Sequence>() || value.is<Dict>() ||
         value.is<std::shared_ptr<Iterator>>() || value.is<std::shared_ptr<LoopState>>();
}

Next iterate(Work& work, const Value& value) {
  if (value.is<Undefined>()) return []() -> std::optional<Value> { return std::nullopt; };
  if (const auto* string = value.as<Text>()) return over_characters(work, *string);
  if (const auto* items = value.as<Sequence>())
    return over_items(work, std::shared_ptr<const Items>(*items, &(*items)->items));
  if (const auto* entries = value.as<Dict>()) {
    return [&work, data = *entries, at = size_t{0}]() mutable -> std::optional<Value> {
      work.step();
      if (at == data->entries.size()) return std::nullopt;
      return data->entries[at++].first;
    };
  }
  if (const auto* held = value.as<std::shared_ptr<Iterator>>())
    return [&work, held = *held]() -> std::optional<Value> {
      const Work::Level level(work);
      work.step();
      return held->next();
    };
  if (value.is<std::shared_ptr<LoopState>>()) work.refuse_unsupported("iterating over `loop`");
  work.refuse(quoted_type(value) + " object is not iterable");
}

Items listed(Work& work, const Value& value) {
  Items out;
  const Next next = iterate(work, value);
  while (auto item = next()) {
    work.make(sizeof(Value));
    out.push_back(std::move(*item));
  }
  return out;
}

const Value* find(Work& work, const DictData& dict, const Value& key) {
  for (const auto& [known, value] : dict.entries) {
    work.step();
    if (equal(work, known, key)) return &value;
  }
  return nullptr;
}

const std::string* text_of(const Value& value) {
  const auto* string = value.as<Text>();
  return string == nullptr ? nullptr : &(*string)->bytes;
}

bool is_markup(const Value& value) {
  const auto* string = value.as<Text>();
  return string != nullptr && (*string)->markup;
}

std::optional<int64_t> integer_of(const Value& value) {
  if (const auto* flag = value.as<bool>()) return *flag ? 1 : 0;
  if (const auto* number = value.as<int64_t>()) return *number;
  return std::nullopt;
}

void refuse_undefined(Work& work, const Value& value) {
  const auto* held = value.as<Undefined>();
  work.refuse(held != nullptr && held->why ? *held->why : "a value is undefined");
}

}  // namespace limbeck::text::jinja
