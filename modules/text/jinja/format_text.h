// Python's two ways to put values into a text, as far as templates use them.
#pragma once
#include <string>

#include "modules/text/jinja/evaluator.h"

namespace limbeck::text::jinja {

// "%s" % values: %s %r %d %i %% and %(name)s; a width, a precision and other letters are refused by name.
std::string format_percent(Work& work, const std::string& format, const Value& values);
// "{} {0} {name}".format(...): with !s and !r, without anything behind a colon.
std::string format_braces(Work& work, const std::string& format, const Arguments& arguments);

}  // namespace limbeck::text::jinja
