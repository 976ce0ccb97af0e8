// a.b, a[b] and a[b:c:d]: an attribute of Python's own types before a key, and nothing that the sandbox hides.
#pragma once
#include <string>

#include "modules/text/jinja/value.h"

namespace limbeck::text::jinja {

Value get_attribute(Work& work, const Value& of, const std::string& name);
Value get_item(Work& work, const Value& of, const Value& key);
Value slice(Work& work, const Value& of, const Value& start, const Value& stop, const Value& step);
// How many steps of `stride` lead from start up to stop, or down to it.
uint64_t steps_between(int64_t start, int64_t stop, int64_t stride);
// "a.b.0" of the filters that take an attribute, or a number.
Value get_path(Work& work, const Value& of, const Value& path);

}  // namespace limbeck::text::jinja
