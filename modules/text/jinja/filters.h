// The filters. Those of Jinja that are not here are known by name, so that they can be refused by it.
#pragma once
#include <string>

#include "modules/text/jinja/evaluator.h"

namespace limbeck::text::jinja {

bool jinja_has_filter(const std::string& name);
Value apply_filter(Evaluator& evaluator, const std::string& name, const Value& value, const Arguments& arguments);

using Filter = Value (*)(Evaluator&, const Value&, const Arguments&);
Filter find_text_filter(const std::string& name);      // text_filters.cpp; null: none is called so
Filter find_number_filter(const std::string& name);    // number_filters.cpp
Filter find_sequence_filter(const std::string& name);  // sequence_filters.cpp
Filter find_choosing_filter(const std::string& name);  // choosing_filters.cpp

// What sorting and the like compare: at a path, and for texts without their case.
Value sort_key(Work& work, const Value& item, const Value& path, bool case_sensitive);

}  // namespace limbeck::text::jinja
