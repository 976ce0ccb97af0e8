// Python's operators. Integers beyond 64 bits are refused.
#pragma once
#include "modules/text/jinja/syntax.h"
#include "modules/text/jinja/value.h"

namespace limbeck::text::jinja {

Value operate(Work& work, Operator op, const Value& left, const Value& right);  // the arithmetic ones
Value signed_value(Work& work, const Value& value, bool negative);
bool ordered(Work& work, Operator op, const Value& left, const Value& right);  // < <= > >=
bool contains(Work& work, const Value& in, const Value& what);

}  // namespace limbeck::text::jinja
