// Equality and order as Python has them: True is 1 is 1.0, texts by code points, lists by their first difference.
#include <algorithm>
#include <cmath>

#include "modules/text/jinja/loop_state.h"
#include "modules/text/jinja/value.h"

namespace limbeck::text::jinja {
namespace {

// An integer of 64 bits is exact in a long double, so that 2^53 + 1 is not 2^53.
static_assert(__LDBL_MANT_DIG__ >= 64);
std::optional<long double> number_of(const Value& value) {
  if (const auto number = integer_of(value)) return static_cast<long double>(*number);
  if (const auto* number = value.as<double>()) return *number;
  return std::nullopt;
}

bool is_view(SequenceKind kind) {
  return kind == SequenceKind::kKeys || kind == SequenceKind::kValues || kind == SequenceKind::kPairs;
}

bool equal_dicts(Work& work, const DictData& a, const DictData& b) {
  if (a.entries.size() != b.entries.size()) return false;
  return std::all_of(a.entries.begin(), a.entries.end(), [&](const auto& entry) {
    const Value* other = find(work, b, entry.first);
    return other != nullptr && equal(work, entry.second, *other);
  });
}

}  // namespace

bool equal(Work& work, const Value& a, const Value& b) {
  work.step();
  const auto left = number_of(a), right = number_of(b);
  if (left || right) return left && right && *left == *right;
  if (a.held().index() != b.held().index()) return false;
  if (a.is<Undefined>() || a.is<None>()) return true;
  if (const auto* string = a.as<Text>()) {
    work.step((*string)->bytes.size() / 64);
    return (*string)->bytes == (*b.as<Text>())->bytes;
  }
  if (const auto* items = a.as<Sequence>()) {
    const SequenceData& other = **b.as<Sequence>();
    if (is_view((*items)->kind) || is_view(other.kind)) work.refuse_unsupported("comparing the views of a dict");
    if ((*items)->kind != other.kind) return false;
    return std::equal((*items)->items.begin(), (*items)->items.end(), other.items.begin(), other.items.end(),
                      [&](const Value& x, const Value& y) { return equal(work, x, y); });
  }
  if (const auto* entries = a.as<Dict>()) return equal_dicts(work, **entries, **b.as<Dict>());
  if (const auto* function = a.as<Function>()) {
    if ((*function)->self) work.refuse_unsupported("comparing methods");
    const FunctionData& other = **b.as<Function>();
    return (*function).get() == &other || ((*function)->macro == nullptr && (*function)->name == other.name);
  }
  if (const auto* names = a.as<std::shared_ptr<Namespace>>()) return *names == *b.as<std::shared_ptr<Namespace>>();
  if (const auto* next = a.as<std::shared_ptr<Iterator>>()) return *next == *b.as<std::shared_ptr<Iterator>>();
  return *a.as<std::shared_ptr<LoopState>>() == *b.as<std::shared_ptr<LoopState>>();
}

bool less(Work& work, const Value& a, const Value& b, const char* shown) {
  work.step();
  if (a.is<Undefined>()) refuse_undefined(work, a);
  if (b.is<Undefined>()) refuse_undefined(work, b);
  const auto left = number_of(a), right = number_of(b);
  if (left && right) return *left < *right;
  const auto *string = text_of(a), *other = text_of(b);
  if (string != nullptr && other != nullptr) {
    work.step(string->size() / 64);
    return *string < *other;  // the order of UTF-8 bytes is that of code points
  }
  const auto *items = a.as<Sequence>(), *others = b.as<Sequence>();
  if (items != nullptr && others != nullptr && (*items)->kind == (*others)->kind &&
      (*items)->kind <= SequenceKind::kTuple) {
    const Items &x = (*items)->items, &y = (*others)->items;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (!equal(work, x[i], y[i])) return less(work, x[i], y[i], shown);
    }
    return x.size() < y.size();
  }
  if (items != nullptr && others != nullptr && is_view((*items)->kind) && is_view((*others)->kind))
    work.refuse_unsupported("comparing the views of a dict");
  work.refuse(std::string(shown) + " not supported between instances of '" + type_name(a) + "' and '" + type_name(b) +
              "'");
}

}  // namespace limbeck::text::jinja
