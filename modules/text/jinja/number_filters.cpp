// Filters that make a number.
#include <fmt/format.h>

#include <cmath>
#include <cstdlib>
#include <map>

#include "modules/text/jinja/arguments.h"
#include "modules/text/jinja/filters.h"
#include "modules/text/jinja/operators.h"
#include "modules/text/jinja/python_text.h"

namespace limbeck::text::jinja {
namespace {

Value absolute(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Bound none(work, "abs", arguments, {});
  if (const auto* number = value.as<double>()) return Value(Value::Held(std::fabs(*number)));
  const auto number = integer_of(value);
  if (!number) work.refuse("bad operand type for abs(): '" + type_name(value) + "'");
  return signed_value(work, value, *number < 0);
}

// As Python rounds a float: its exact value to the nearest decimal, ties to even.
double rounded(double number, int64_t digits) {
  if (!std::isfinite(number) || digits > 300) return number;
  const std::string text = fmt::format("{:.{}f}", number, static_cast<int>(digits));
  return std::strtod(text.c_str(), nullptr);
}

Value round(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Bound bound(work, "round", arguments, {"precision", "method"});
  const int64_t digits = bound.integer(0, 0);
  const std::string method = bound.given(1) ? to_text(work, bound.value(1)) : "common";
  if (method != "common" && method != "ceil" && method != "floor")
    work.refuse("round: the method wanted is common, ceil or floor");
  if (digits < 0 || digits > 18) work.refuse_unsupported("round to a precision outside 0 to 18");
  const auto integer = integer_of(value);
  const auto* real = value.as<double>();
  if (!integer && real == nullptr) work.refuse("round wanted a number, got a " + type_name(value));
  if (method == "common") return integer ? Value(Value::Held(*integer)) : Value(Value::Held(rounded(*real, digits)));
  const double scale = std::pow(10.0, static_cast<double>(digits));
  const double scaled = (integer ? static_cast<double>(*integer) : *real) * scale;
  if (!std::isfinite(scaled)) work.refuse("round: cannot make an integer of " + shown(scaled));
  return Value(Value::Held((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale));
}

// int() of a float; none beyond Python's reach.
Value truncated(Work& work, double number) {
  if (std::fabs(number) >= 9223372036854775807.0) work.refuse_unsupported("an integer beyond 64 bits");
  return Value(Value::Held(static_cast<int64_t>(number)));
}

Value to_integer(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Bound bound(work, "int", arguments, {"default", "base"});
  const Value fallback = bound.given(0) ? bound.value(0) : Value(Value::Held(int64_t{0}));
  const int64_t base = bound.integer(1, 10);
  if (base != 2 && base != 8 && base != 10 && base != 16)
    work.refuse_unsupported("int with another base than 2, 8, 10, 16");
  if (value.is<Undefined>()) refuse_undefined(work, value);
  if (const auto number = integer_of(value)) return Value(Value::Held(*number));
  if (const auto* number = value.as<double>()) {
    if (std::isinf(*number)) work.refuse("cannot convert float infinity to integer");
    return std::isnan(*number) ? fallback : truncated(work, *number);
  }
  const std::string* string = text_of(value);
  if (string == nullptr) return fallback;
  bool too_big = false;
  const auto number = parse_integer(*string, static_cast<int>(base), too_big);
  if (too_big) work.refuse_unsupported("an integer beyond 64 bits");
  if (number) return Value(Value::Held(*number));
  const auto real = parse_float(*string);
  return real && std::isfinite(*real) ? truncated(work, *real) : fallback;
}

Value to_float(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Bound bound(work, "float", arguments, {"default"});
  if (value.is<Undefined>()) refuse_undefined(work, value);
  if (const auto number = integer_of(value)) return Value(Value::Held(static_cast<double>(*number)));
  if (value.is<double>()) return value;
  const std::string* string = text_of(value);
  const auto number = string == nullptr ? std::nullopt : parse_float(*string);
  if (number) return Value(Value::Held(*number));
  return bound.given(0) ? bound.value(0) : Value(Value::Held(0.0));
}

Value count(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Bound none(work, "length", arguments, {});
  if (const std::string* string = text_of(value)) work.step(string->size() / 64);
  const auto size = length(value);
  if (!size) work.refuse("object of type '" + type_name(value) + "' has no len()");
  return Value(Value::Held(static_cast<int64_t>(*size)));
}

Value sum(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Bound bound(work, "sum", arguments, {"attribute", "start"});
  Value total = bound.given(1) ? bound.value(1) : Value(Value::Held(int64_t{0}));
  if (total.is<Text>()) work.refuse("sum() can't sum strings");
  const Next next = iterate(work, value);
  while (const auto item = next())
    total = operate(work, Operator::kAdd, total, sort_key(work, *item, bound.value(0), true));
  return total;
}

template <bool kGreatest>
Value extreme(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Bound bound(work, kGreatest ? "max" : "min", arguments, {"case_sensitive", "attribute"});
  std::optional<Value> best, best_key;
  const Next next = iterate(work, value);
  while (auto item = next()) {
    Value key = sort_key(work, *item, bound.value(1), bound.flag(0, false));
    if (best && !(kGreatest ? less(work, *best_key, key, ">") : less(work, key, *best_key, "<"))) continue;
    best = std::move(item);
    best_key = std::move(key);
  }
  return best ? *best : undefined("No aggregated item, sequence was empty.");
}

}  // namespace

Filter find_number_filter(const std::string& name) {
  static const std::map<std::string, Filter> kFilters = {
      {"abs", absolute},      {"count", count},        {"float", to_float}, {"int", to_integer}, {"length", count},
      {"max", extreme<true>}, {"min", extreme<false>}, {"round", round},    {"sum", sum},
  };
  const auto found = kFilters.find(name);
  return found == kFilters.end() ? nullptr : found->second;
}

}  // namespace limbeck::text::jinja
