// Arguments of a call to parameters by their names.
#pragma once
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "modules/text/jinja/evaluator.h"

namespace limbeck::text::jinja {

class Bound {
 public:
  Bound(Work& work, std::string what, const Arguments& arguments, std::initializer_list<const char*> names,
        size_t required = 0);

  bool given(size_t index) const { return values_[index].has_value(); }
  Value value(size_t index, Value fallback = Value(None{})) const;
  bool flag(size_t index, bool fallback) const;
  int64_t integer(size_t index, int64_t fallback) const;  // refuses another type
  // Undefined and None count as not given.
  std::optional<std::string> text(size_t index) const;
  std::string required_text(size_t index) const;

 private:
  Work& work_;
  std::string what_;
  std::vector<const char*> names_;
  std::vector<std::optional<Value>> values_;
};

}  // namespace limbeck::text::jinja
