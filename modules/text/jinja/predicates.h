// The tests: `is defined`, and what select() and its like take by name.
#pragma once
#include <string>

#include "modules/text/jinja/evaluator.h"

namespace limbeck::text::jinja {

bool jinja_has_test(const std::string& name);
bool apply_test(Work& work, const std::string& name, const Value& value, const Arguments& arguments);

}  // namespace limbeck::text::jinja
