// The functions that a template finds without being given them.
#pragma once
#include <optional>
#include <string>

#include "modules/text/jinja/evaluator.h"

namespace limbeck::text::jinja {

std::optional<Value> find_global(Work& work, const std::string& name);
Value call_global(Evaluator& evaluator, const std::string& name, const Arguments& arguments);

}  // namespace limbeck::text::jinja
