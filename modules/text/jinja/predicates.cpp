#include "modules/text/jinja/predicates.h"

#include <map>

#include "modules/text/jinja/arguments.h"
#include "modules/text/jinja/filters.h"
#include "modules/text/jinja/loop_state.h"
#include "modules/text/jinja/methods.h"
#include "modules/text/jinja/operators.h"

namespace limbeck::text::jinja {
namespace {

using Plain = bool (*)(const Value&);
using Comparing = bool (*)(Work&, const Value&, const Value&);

bool is_flag(const Value& value, bool wanted) {
  const auto* flag = value.as<bool>();
  return flag != nullptr && *flag == wanted;
}

bool is_sequence(const Value& value) {
  if (value.is<Undefined>() || value.is<Text>() || value.is<Dict>()) return true;
  const auto* items = value.as<Sequence>();
  return items != nullptr && (*items)->kind <= SequenceKind::kRange;
}

bool is_callable(const Value& value) {
  return value.is<Function>() || value.is<Undefined>() || value.is<std::shared_ptr<LoopState>>();
}

bool has_remainder(Work& work, const Value& value, const Value& by, int64_t wanted) {
  if (value.is<Text>()) work.refuse_unsupported("is odd, even or divisibleby of a text");
  return equal(work, operate(work, Operator::kRemainder, value, by), Value(Value::Held(wanted)));
}

bool same(Work& work, const Value& a, const Value& b) {
  if (a.held().index() != b.held().index()) return false;
  if (a.is<None>()) return true;
  if (const auto* flag = a.as<bool>()) return *flag == *b.as<bool>();
  work.refuse_unsupported("is sameas of other values than true, false and none");
}

const std::map<std::string, Plain>& plain_tests() {
  static const std::map<std::string, Plain> kTests = {
      {"boolean", [](const Value& v) { return v.is<bool>(); }},
      {"callable", is_callable},
      {"defined", [](const Value& v) { return !v.is<Undefined>(); }},
      {"escaped", is_markup},
      {"false", [](const Value& v) { return is_flag(v, false); }},
      {"float", [](const Value& v) { return v.is<double>(); }},
      {"integer", [](const Value& v) { return v.is<int64_t>(); }},
      {"iterable", iterable},
      {"mapping", [](const Value& v) { return v.is<Dict>(); }},
      {"none", [](const Value& v) { return v.is<None>(); }},
      {"number", [](const Value& v) { return v.is<bool>() || v.is<int64_t>() || v.is<double>(); }},
      {"sequence", is_sequence},
      {"string", [](const Value& v) { return v.is<Text>(); }},
      {"true", [](const Value& v) { return is_flag(v, true); }},
      {"undefined", [](const Value& v) { return v.is<Undefined>(); }},
  };
  return kTests;
}

template <Operator kOperator>
bool in_order(Work& work, const Value& a, const Value& b) {
  return ordered(work, kOperator, a, b);
}
bool differ(Work& work, const Value& a, const Value& b) { return !equal(work, a, b); }

const std::map<std::string, Comparing>& comparing_tests() {
  static const std::map<std::string, Comparing> kTests = {
      {"==", equal},
      {"eq", equal},
      {"equalto", equal},
      {"!=", differ},
      {"ne", differ},
      {">", in_order<Operator::kGreater>},
      {"gt", in_order<Operator::kGreater>},
      {"greaterthan", in_order<Operator::kGreater>},
      {">=", in_order<Operator::kGreaterEqual>},
      {"ge", in_order<Operator::kGreaterEqual>},
      {"<", in_order<Operator::kLess>},
      {"lt", in_order<Operator::kLess>},
      {"lessthan", in_order<Operator::kLess>},
      {"<=", in_order<Operator::kLessEqual>},
      {"le", in_order<Operator::kLessEqual>},
      {"divisibleby", [](Work& work, const Value& a, const Value& b) { return has_remainder(work, a, b, 0); }},
      {"in", [](Work& work, const Value& a, const Value& b) { return contains(work, b, a); }},
      {"sameas", same},
  };
  return kTests;
}

bool is_word_test(const std::string& name) {
  return name == "odd" || name == "even" || name == "lower" || name == "upper" || name == "filter" || name == "test";
}

}  // namespace

bool jinja_has_test(const std::string& name) {
  return plain_tests().contains(name) || comparing_tests().contains(name) || is_word_test(name);
}

bool apply_test(Work& work, const std::string& name, const Value& value, const Arguments& arguments) {
  if (const auto found = comparing_tests().find(name); found != comparing_tests().end()) {
    const Bound bound(work, "is " + name, arguments, {"other"}, 1);
    return found->second(work, value, bound.value(0));
  }
  const Bound none(work, "is " + name, arguments, {});
  if (const auto found = plain_tests().find(name); found != plain_tests().end()) return found->second(value);
  if (!is_word_test(name)) work.refuse("no test is called \"" + name + "\"");
  if (name == "odd" || name == "even")
    return has_remainder(work, value, Value(Value::Held(int64_t{2})), name == "odd" ? 1 : 0);
  if (name == "lower" || name == "upper") return has_case(work, to_text(work, value), name == "upper");
  if (!hashable(work, value)) work.refuse("unhashable type: '" + type_name(value) + "'");
  const std::string* known = text_of(value);
  return known != nullptr && (name == "filter" ? jinja_has_filter(*known) : jinja_has_test(*known));
}

}  // namespace limbeck::text::jinja
