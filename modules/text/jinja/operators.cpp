#include "modules/text/jinja/operators.h"

#include <algorithm>
#include <cmath>

#include "modules/text/jinja/format_text.h"
#include "modules/text/jinja/python_text.h"

namespace limbeck::text::jinja {
namespace {

constexpr const char* kSpelled[] = {"+", "-", "*", "/", "//", "%", "**"};

Value whole(int64_t value) { return Value(Value::Held(value)); }
Value real(double value) { return Value(Value::Held(value)); }

[[noreturn]] void refuse_overflow(const Work& work) { work.refuse_unsupported("an integer beyond 64 bits"); }

int64_t integer_power(Work& work, int64_t base, int64_t exponent) {
  int64_t out = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(out, base, &out)) refuse_overflow(work);
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) refuse_overflow(work);
  }
  return out;
}

double real_power(Work& work, double base, double exponent) {
  if (base == 0 && exponent < 0) work.refuse("0.0 cannot be raised to a negative power");
  if (base < 0 && std::isfinite(base) && std::isfinite(exponent) && exponent != std::floor(exponent))
    work.refuse_unsupported("a complex number");
  const double out = std::pow(base, exponent);
  if (std::isinf(out) && std::isfinite(base) && std::isfinite(exponent)) work.refuse("a power too large for a float");
  return out;
}

Value on_integers(Work& work, Operator op, int64_t a, int64_t b) {
  int64_t out = 0;
  if (b == 0 && op >= Operator::kDivide && op <= Operator::kRemainder) work.refuse("division by zero");
  switch (op) {
    case Operator::kAdd:
      if (__builtin_add_overflow(a, b, &out)) refuse_overflow(work);
      return whole(out);
    case Operator::kSubtract:
      if (__builtin_sub_overflow(a, b, &out)) refuse_overflow(work);
      return whole(out);
    case Operator::kMultiply:
      if (__builtin_mul_overflow(a, b, &out)) refuse_overflow(work);
      return whole(out);
    case Operator::kDivide:
      return real(static_cast<double>(static_cast<long double>(a) / static_cast<long double>(b)));
    case Operator::kFloorDivide:
      if (a == INT64_MIN && b == -1) refuse_overflow(work);
      return whole(a / b - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0));
    case Operator::kRemainder:
      if (b == -1) return whole(0);
      out = a % b;
      return whole(out != 0 && (out < 0) != (b < 0) ? out + b : out);
    default:
      if (b < 0) {
        if (a == 0) work.refuse("0 cannot be raised to a negative power");
        return real(real_power(work, static_cast<double>(a), static_cast<double>(b)));
      }
      if (a == 0 || a == 1) return whole(b == 0 ? 1 : a);
      if (a == -1) return whole(b % 2 == 0 ? 1 : -1);
      return whole(integer_power(work, a, b));
  }
}

Value on_reals(Work& work, Operator op, double a, double b) {
  if (b == 0 && op >= Operator::kDivide && op <= Operator::kRemainder) work.refuse("float division by zero");
  // The sign of a remainder is the divisor's, and the quotient is what then fits.
  double rest = op == Operator::kFloorDivide || op == Operator::kRemainder ? std::fmod(a, b) : 0;
  double quotient = (a - rest) / b;
  if (rest != 0) {
    if ((b < 0) != (rest < 0)) {
      rest += b;
      quotient -= 1;
    }
  } else {
    rest = std::copysign(0.0, b);
  }
  switch (op) {
    case Operator::kAdd:
      return real(a + b);
    case Operator::kSubtract:
      return real(a - b);
    case Operator::kMultiply:
      return real(a * b);
    case Operator::kDivide:
      return real(a / b);
    case Operator::kRemainder:
      return real(rest);
    case Operator::kFloorDivide: {
      if (quotient == 0) return real(std::copysign(0.0, a / b));
      const double down = std::floor(quotient);
      return real(quotient - down > 0.5 ? down + 1 : down);
    }
    default:
      return real(real_power(work, a, b));
  }
}

std::optional<double> real_of(const Value& value) {
  if (const auto number = integer_of(value)) return static_cast<double>(*number);
  if (const auto* number = value.as<double>()) return *number;
  return std::nullopt;
}

// Both are texts, lists or tuples.
std::optional<Value> concatenated(Work& work, const Value& left, const Value& right) {
  const auto *a = text_of(left), *b = text_of(right);
  if (a != nullptr && b != nullptr) {
    const bool markup = is_markup(left) || is_markup(right);
    const auto part = [&](const Value& value) {
      return markup && !is_markup(value) ? escaped(*text_of(value)) : *text_of(value);
    };
    work.make(a->size() + b->size());
    return text(work, part(left) + part(right), markup);
  }
  const auto *first = left.as<Sequence>(), *second = right.as<Sequence>();
  if (first == nullptr || second == nullptr || (*first)->kind != (*second)->kind ||
      (*first)->kind > SequenceKind::kTuple)
    return std::nullopt;
  work.make(((*first)->items.size() + (*second)->items.size()) * sizeof(Value));
  Items items = (*first)->items;
  items.insert(items.end(), (*second)->items.begin(), (*second)->items.end());
  return sequence(work, std::move(items), (*first)->kind);
}

std::optional<Value> repeated(Work& work, const Value& what, const Value& times) {
  const auto count = integer_of(times);
  const std::string* string = text_of(what);
  const auto* items = what.as<Sequence>();
  if (!count || (string == nullptr && (items == nullptr || (*items)->kind > SequenceKind::kTuple))) return std::nullopt;
  const size_t size = string != nullptr ? string->size() : (*items)->items.size() * sizeof(Value);
  const size_t copies = static_cast<size_t>(std::max<int64_t>(*count, 0));
  if (size > 0 && copies > work.limits().made_bytes / size) work.refuse("a repetition beyond all limits");
  work.make(size * copies);
  if (string != nullptr) {
    std::string out;
    for (size_t i = 0; i < (string->empty() ? 0 : copies); ++i) out += *string;
    return text(work, std::move(out), is_markup(what));
  }
  Items out;
  for (size_t i = 0; i < ((*items)->items.empty() ? 0 : copies); ++i)
    out.insert(out.end(), (*items)->items.begin(), (*items)->items.end());
  return sequence(work, std::move(out), (*items)->kind);
}

}  // namespace

Value operate(Work& work, Operator op, const Value& left, const Value& right) {
  if (left.is<Undefined>()) refuse_undefined(work, left);
  if (op == Operator::kRemainder && left.is<Text>()) {
    if (is_markup(left)) work.refuse_unsupported("% of what `safe` or `escape` made");
    return text(work, format_percent(work, *text_of(left), right));
  }
  if (right.is<Undefined>()) refuse_undefined(work, right);
  const auto a = integer_of(left), b = integer_of(right);
  if (a && b) return on_integers(work, op, *a, *b);
  const auto x = real_of(left), y = real_of(right);
  if (x && y) return on_reals(work, op, *x, *y);
  std::optional<Value> out;
  if (op == Operator::kAdd) out = concatenated(work, left, right);
  if (op == Operator::kMultiply) {
    out = repeated(work, left, right);
    if (!out) out = repeated(work, right, left);
  }
  if (out) return *out;
  work.refuse(std::string("unsupported operand types for ") + kSpelled[static_cast<size_t>(op)] + ": '" +
              type_name(left) + "' and '" + type_name(right) + "'");
}

Value signed_value(Work& work, const Value& value, bool negative) {
  if (value.is<Undefined>()) refuse_undefined(work, value);
  if (const auto number = integer_of(value)) {
    if (negative && *number == INT64_MIN) refuse_overflow(work);
    return whole(negative ? -*number : *number);
  }
  const auto* number = value.as<double>();
  if (number == nullptr) work.refuse("bad operand type for a sign: '" + type_name(value) + "'");
  return real(negative ? -*number : *number);
}

bool ordered(Work& work, Operator op, const Value& left, const Value& right) {
  const auto nan = [](const Value& value) { return value.is<double>() && std::isnan(*value.as<double>()); };
  switch (op) {
    case Operator::kLess:
      return less(work, left, right, "<");
    case Operator::kGreater:
      return less(work, right, left, ">");
    case Operator::kLessEqual:
      return !less(work, right, left, "<=") && !nan(left) && !nan(right);
    default:
      return !less(work, left, right, ">=") && !nan(left) && !nan(right);
  }
}

bool contains(Work& work, const Value& in, const Value& what) {
  if (const std::string* whole_text = text_of(in)) {
    const std::string* part = text_of(what);
    if (part == nullptr) work.refuse("'in <string>' requires string as left operand, not " + type_name(what));
    work.step(whole_text->size() / 64);
    return whole_text->find(*part) != whole_text->npos;
  }
  if (const auto* entries = in.as<Dict>()) {
    if (!hashable(work, what)) work.refuse("unhashable type: '" + type_name(what) + "'");
    return find(work, **entries, what) != nullptr;
  }
  if (in.is<bool>() || in.is<int64_t>() || in.is<double>() || in.is<None>() || !iterable(in))
    work.refuse("argument of type '" + type_name(in) + "' is not iterable");
  const Next next = iterate(work, in);
  while (const auto item = next()) {
    if (equal(work, *item, what)) return true;
  }
  return false;
}

}  // namespace limbeck::text::jinja
