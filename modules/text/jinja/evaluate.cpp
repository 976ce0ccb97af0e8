// The expressions of a template.
#include <fmt/format.h>

#include <algorithm>

#include "modules/text/jinja/evaluator.h"
#include "modules/text/jinja/filters.h"
#include "modules/text/jinja/globals.h"
#include "modules/text/jinja/lookup.h"
#include "modules/text/jinja/loop_state.h"
#include "modules/text/jinja/methods.h"
#include "modules/text/jinja/operators.h"
#include "modules/text/jinja/predicates.h"
#include "modules/text/jinja/python_text.h"

namespace limbeck::text::jinja {

std::shared_ptr<Namespace> Evaluator::new_namespace() {
  work_.make(sizeof(Namespace) + 64);
  namespaces_.push_back(std::make_shared<Namespace>());
  return namespaces_.back();
}

Value Evaluator::filter(const std::string& name, const Value& value, const Arguments& arguments) {
  const Work::Level level(work_);
  work_.step();
  return apply_filter(*this, name, value, arguments);
}

bool Evaluator::test(const std::string& name, const Value& value, const Arguments& arguments) {
  work_.step();
  return apply_test(work_, name, value, arguments);
}

Value Evaluator::evaluate(const Expression& expression, Scope& scope) {
  const Work::Level level(work_);
  work_.step();
  work_.at(expression.line);
  return evaluate_inner(expression, scope);
}

Value Evaluator::evaluate_inner(const Expression& expression, Scope& scope) {
  const auto part = [&](size_t index) { return evaluate(*expression.items[index], scope); };
  const auto flag = [](bool value) { return Value(Value::Held(value)); };
  switch (expression.kind) {
    case ExpressionKind::kConstant:
      return expression.constant;
    case ExpressionKind::kName:
      return evaluate_name(expression, scope);
    case ExpressionKind::kList:
    case ExpressionKind::kTuple:
    case ExpressionKind::kDict:
      return evaluate_items(expression, scope);
    case ExpressionKind::kAttribute:
      return get_attribute(work_, part(0), expression.name);
    case ExpressionKind::kItem: {
      const Value of = part(0);
      return get_item(work_, of, part(1));
    }
    case ExpressionKind::kSlice:
      return evaluate_slice(expression, scope);
    case ExpressionKind::kCall:
      return evaluate_call(expression, scope, nullptr);
    case ExpressionKind::kFilter: {
      const Value of = expression.items[0] ? part(0) : *scope.find("");
      return filter(expression.name, of, evaluate_arguments(expression.arguments, scope));
    }
    case ExpressionKind::kTest: {
      const Value of = part(0);
      return flag(test(expression.name, of, evaluate_arguments(expression.arguments, scope)));
    }
    case ExpressionKind::kNot:
      return flag(!truth(part(0)));
    case ExpressionKind::kAnd: {
      Value left = part(0);
      return truth(left) ? part(1) : left;
    }
    case ExpressionKind::kOr: {
      Value left = part(0);
      return truth(left) ? left : part(1);
    }
    case ExpressionKind::kNegative:
    case ExpressionKind::kPositive:
      return signed_value(work_, part(0), expression.kind == ExpressionKind::kNegative);
    case ExpressionKind::kBinary: {
      const Value left = part(0), right = part(1);
      return operate(work_, expression.operators[0], left, right);
    }
    case ExpressionKind::kConcat:
      return evaluate_concat(expression, scope);
    case ExpressionKind::kCompare:
      return evaluate_compare(expression, scope);
    case ExpressionKind::kCondition:
      if (truth(part(0))) return part(1);
      if (expression.items.size() > 2) return part(2);
      return undefined("an `if` without `else` within an expression was false");
    case ExpressionKind::kNamespaceName:
      break;
  }
  work_.refuse("a name to assign to stands where a value should");
}

Value Evaluator::evaluate_name(const Expression& expression, const Scope& scope) {
  const Value* held = scope.find(expression.name);
  if (held != nullptr) return *held;
  if (auto global = find_global(work_, expression.name)) return *global;
  return undefined(python_quoted(expression.name) + " is undefined");
}

Value Evaluator::evaluate_items(const Expression& expression, Scope& scope) {
  if (expression.kind == ExpressionKind::kDict) {
    Entries entries;
    for (size_t i = 0; i < expression.items.size(); i += 2) {
      const Value key = evaluate(*expression.items[i], scope);
      put(work_, entries, key, evaluate(*expression.items[i + 1], scope));
    }
    return dict(work_, std::move(entries));
  }
  Items items;
  for (const ExpressionPointer& item : expression.items) items.push_back(evaluate(*item, scope));
  return sequence(work_, std::move(items),
                  expression.kind == ExpressionKind::kList ? SequenceKind::kList : SequenceKind::kTuple);
}

Value Evaluator::evaluate_slice(const Expression& expression, Scope& scope) {
  const Value of = evaluate(*expression.items[0], scope);
  Value bounds[3];
  for (size_t i = 0; i < 3; ++i) {
    const ExpressionPointer& bound = expression.items[i + 1];
    bounds[i] = bound ? evaluate(*bound, scope) : Value(None{});
  }
  work_.at(expression.line);
  return slice(work_, of, bounds[0], bounds[1], bounds[2]);
}

Value Evaluator::evaluate_concat(const Expression& expression, Scope& scope) {
  std::string out;
  for (const ExpressionPointer& item : expression.items) {
    const std::string part = to_text(work_, evaluate(*item, scope));
    work_.make(part.size());
    out += part;
  }
  return text(work_, std::move(out));
}

Value Evaluator::evaluate_compare(const Expression& expression, Scope& scope) {
  Value left = evaluate(*expression.items[0], scope);
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    Value right = evaluate(*expression.items[i + 1], scope);
    work_.at(expression.line);
    if (!compare(expression.operators[i], left, right)) return Value(Value::Held(false));
    left = std::move(right);
  }
  return Value(Value::Held(true));
}

bool Evaluator::compare(Operator op, const Value& left, const Value& right) {
  switch (op) {
    case Operator::kEqual:
      return equal(work_, left, right);
    case Operator::kNotEqual:
      return !equal(work_, left, right);
    case Operator::kIn:
      return contains(work_, right, left);
    case Operator::kNotIn:
      return !contains(work_, right, left);
    default:
      return ordered(work_, op, left, right);
  }
}

Arguments Evaluator::evaluate_arguments(const CallArguments& arguments, Scope& scope) {
  Arguments out;
  for (const ExpressionPointer& value : arguments.positional) out.positional.push_back(evaluate(*value, scope));
  for (const auto& [name, value] : arguments.named) out.named.emplace_back(name, evaluate(*value, scope));
  if (arguments.more) {
    for (Value& value : listed(work_, evaluate(*arguments.more, scope))) out.positional.push_back(std::move(value));
  }
  if (arguments.more_named) {
    const Value more = evaluate(*arguments.more_named, scope);
    const auto* entries = more.as<Dict>();
    if (entries == nullptr) work_.refuse("argument after ** is a " + type_name(more) + ", wanted a dict");
    for (const auto& [key, value] : (*entries)->entries) {
      const std::string* name = text_of(key);
      if (name == nullptr) work_.refuse("a key of the dict after ** is a " + type_name(key) + ", wanted a str");
      const auto same = [&](const auto& known) { return known.first == *name; };
      if (std::any_of(out.named.begin(), out.named.end(), same))
        work_.refuse("the argument " + *name + " is given twice");
      out.named.emplace_back(*name, value);
    }
  }
  return out;
}

Value Evaluator::evaluate_call(const Expression& expression, Scope& scope, const Value* caller) {
  const Value callee = evaluate(*expression.items[0], scope);
  Arguments arguments = evaluate_arguments(expression.arguments, scope);
  if (caller != nullptr) arguments.named.emplace_back("caller", *caller);
  work_.at(expression.line);
  Value out = call(callee, std::move(arguments));
  work_.at(expression.line);
  return out;
}

Value Evaluator::call(const Value& callee, Arguments arguments) {
  const Work::Level level(work_);
  work_.step();
  if (callee.is<Undefined>()) refuse_undefined(work_, callee);
  if (callee.is<std::shared_ptr<LoopState>>()) work_.refuse_unsupported("a recursive for");
  const auto* function = callee.as<Function>();
  if (function == nullptr) work_.refuse(quoted_type(callee) + " object is not callable");
  if ((*function)->macro != nullptr) return call_macro(**function, std::move(arguments));
  if ((*function)->self) return call_method(*this, *(*function)->self, (*function)->name, arguments);
  return call_global(*this, (*function)->name, arguments);
}

Value Evaluator::call_macro(const FunctionData& function, Arguments arguments) {
  const MacroDefinition& macro = *function.macro;
  const std::string shown = "the macro " + (macro.name.empty() ? "of a call block" : macro.name);
  const auto inner = std::make_shared<Scope>(function.scope);
  const size_t parameters = macro.parameters.size();
  if (arguments.positional.size() > parameters) {
    work_.refuse(fmt::format("{} takes at most {} arguments, got {}", shown, parameters, arguments.positional.size()));
  }
  const auto take = [&](const std::string& name) -> std::optional<Value> {
    for (auto at = arguments.named.begin(); at != arguments.named.end(); ++at) {
      if (at->first != name) continue;
      Value value = std::move(at->second);
      arguments.named.erase(at);
      return value;
    }
    return std::nullopt;
  };
  std::vector<std::optional<Value>> given(parameters);
  for (size_t i = 0; i < parameters; ++i)
    given[i] = i < arguments.positional.size() ? arguments.positional[i] : take(macro.parameters[i]);
  if (macro.uses_caller) {
    auto caller = take("caller");
    inner->set("caller", caller && !caller->is<None>() ? *caller : undefined("No caller defined"));
  }
  if (!arguments.named.empty())
    work_.refuse(fmt::format("{} takes no argument {}", shown, arguments.named.front().first));
  for (size_t i = 0; i < parameters; ++i) {  // a default may look at the parameters before it
    const size_t plain = parameters - macro.defaults.size();
    if (!given[i])
      given[i] = i >= plain ? evaluate(*macro.defaults[i - plain], *inner)
                            : undefined("parameter " + python_quoted(macro.parameters[i]) + " was not provided");
    inner->set(macro.parameters[i], std::move(*given[i]));
  }
  std::string out;
  std::string* const outer = std::exchange(out_, &out);
  execute(*macro.body, *inner);
  out_ = outer;
  return text(work_, std::move(out));
}

}  // namespace limbeck::text::jinja
