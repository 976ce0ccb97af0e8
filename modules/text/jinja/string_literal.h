// The literals of an expression.
#pragma once
#include <string>
#include <string_view>

#include "modules/text/jinja/work.h"

namespace limbeck::text::jinja {

// What stands between the quotes, its escapes resolved as Python's unicode-escape does.
std::string unescaped(const Work& work, std::string_view literal);

}  // namespace limbeck::text::jinja
