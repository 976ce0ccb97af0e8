// json.dumps, to the byte.
#pragma once
#include <optional>
#include <string>

#include "modules/text/jinja/value.h"

namespace limbeck::text::jinja {

struct JsonStyle {
  bool ascii = false, sorted = false;
  std::optional<std::string> indent;
  std::string item = ", ", key = ": ";
};

std::string to_json(Work& work, const Value& value, const JsonStyle& style);

}  // namespace limbeck::text::jinja
