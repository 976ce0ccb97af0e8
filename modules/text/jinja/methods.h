// The methods of Python's str, list, tuple, dict and of `loop`.
#pragma once
#include <string>

#include "modules/text/jinja/evaluator.h"

namespace limbeck::text::jinja {

enum class MethodKind {
  kNone,  // Python has no such attribute
  kCallable,
  kMutates,     // which the sandbox hides
  kUnsupported  // Python has it, Limbeck does not
};

MethodKind method_kind(const Value& of, const std::string& name);
Value call_method(Evaluator& evaluator, const Value& of, const std::string& name, const Arguments& arguments);
// str.replace, counted before it takes memory.
Value replaced(Work& work, const std::string& self, const std::string& old, const std::string& with, int64_t most);
bool has_case(Work& work, const std::string& self, bool upper);  // str.isupper, str.islower
Value call_text_method(Work& work, const Value& of, const std::string& name, const Arguments& arguments);

}  // namespace limbeck::text::jinja
