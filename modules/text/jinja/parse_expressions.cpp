#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "modules/text/jinja/filters.h"
#include "modules/text/jinja/parser.h"
#include "modules/text/jinja/predicates.h"

namespace limbeck::text::jinja {

ExpressionPointer Parser::node(ExpressionKind kind, int line) {
  work_.make(sizeof(Expression));
  auto out = std::make_unique<Expression>();
  out->kind = kind;
  out->line = line;
  return out;
}

// A chain such as a + b + c is as deep as it is long.
void Parser::deepen(Expression& parent, const Expression& child) {
  parent.depth = std::max(parent.depth, child.depth + 1);
  if (parent.depth <= work_.limits().depth) return;
  work_.at(parent.line);
  work_.refuse(fmt::format("an expression of more than {} parts within each other", work_.limits().depth));
}

void Parser::add(Expression& parent, ExpressionPointer child) {
  if (child) deepen(parent, *child);
  parent.items.push_back(std::move(child));
}

ExpressionPointer Parser::binary(Operator op, ExpressionPointer left, ExpressionPointer right, int line) {
  ExpressionPointer out = node(ExpressionKind::kBinary, line);
  add(*out, std::move(left));
  add(*out, std::move(right));
  out->operators.push_back(op);
  return out;
}

ExpressionPointer Parser::tuple(bool with_condition, Words ends, bool parenthesized) {
  const Deeper deeper(*this);
  const int line = now().line;
  std::vector<ExpressionPointer> parts;
  bool is_tuple = false;
  for (;;) {
    if (!parts.empty()) expect_symbol(",");
    if (sees(TokenKind::kPrintEnd) || sees(TokenKind::kTagEnd) || sees_symbol(")") || sees_one_of(ends)) break;
    parts.push_back(expression(with_condition));
    if (!sees_symbol(",")) break;
    is_tuple = true;
  }
  if (!is_tuple && !parts.empty()) return std::move(parts.front());
  if (!is_tuple && !parenthesized) refuse(now(), "unexpected " + shown(now()) + ", wanted an expression");
  ExpressionPointer out = node(ExpressionKind::kTuple, line);
  for (ExpressionPointer& part : parts) add(*out, std::move(part));
  return out;
}

ExpressionPointer Parser::expression(bool with_condition) {
  const Deeper deeper(*this);
  return with_condition ? condition() : disjunction();
}

ExpressionPointer Parser::condition() {
  const size_t unknown = unknown_.size();
  ExpressionPointer out = disjunction();
  while (sees_name("if")) {
    ExpressionPointer whole = node(ExpressionKind::kCondition, take().line);
    add(*whole, disjunction());
    add(*whole, std::move(out));
    if (skip_name("else")) {
      const Deeper deeper(*this);
      add(*whole, condition());
    }
    out = std::move(whole);
    unknown_.resize(std::min(unknown, unknown_.size()));  // refused when they are reached
  }
  return out;
}

ExpressionPointer Parser::disjunction() {
  ExpressionPointer left = conjunction();
  while (sees_name("or")) {
    ExpressionPointer out = node(ExpressionKind::kOr, take().line);
    add(*out, std::move(left));
    add(*out, conjunction());
    left = std::move(out);
  }
  return left;
}

ExpressionPointer Parser::conjunction() {
  ExpressionPointer left = negation();
  while (sees_name("and")) {
    ExpressionPointer out = node(ExpressionKind::kAnd, take().line);
    add(*out, std::move(left));
    add(*out, negation());
    left = std::move(out);
  }
  return left;
}

ExpressionPointer Parser::negation() {
  if (!sees_name("not")) return comparison();
  const Deeper deeper(*this);
  ExpressionPointer out = node(ExpressionKind::kNot, take().line);
  add(*out, negation());
  return out;
}

ExpressionPointer Parser::comparison() {
  static constexpr std::pair<std::string_view, Operator> kOperators[] = {
      {"==", Operator::kEqual},     {"!=", Operator::kNotEqual}, {"<", Operator::kLess},
      {"<=", Operator::kLessEqual}, {">", Operator::kGreater},   {">=", Operator::kGreaterEqual}};
  const int line = now().line;
  ExpressionPointer first = sum();
  ExpressionPointer out;
  for (;;) {
    Operator op = Operator::kIn;
    const auto* found = std::find_if(std::begin(kOperators), std::end(kOperators),
                                     [&](const auto& entry) { return sees_symbol(entry.first); });
    if (found != std::end(kOperators)) {
      op = found->second;
    } else if (sees_name("not") && ahead().kind == TokenKind::kName && ahead().text == "in") {
      take();
      op = Operator::kNotIn;
    } else if (!sees_name("in")) {
      return out ? std::move(out) : std::move(first);
    }
    take();
    if (!out) {
      out = node(ExpressionKind::kCompare, line);
      add(*out, std::move(first));
    }
    add(*out, sum());
    out->operators.push_back(op);
  }
}

ExpressionPointer Parser::sum() {
  ExpressionPointer left = concatenation();
  while (sees_symbol("+") || sees_symbol("-")) {
    const Token token = take();
    left =
        binary(token.text == "+" ? Operator::kAdd : Operator::kSubtract, std::move(left), concatenation(), token.line);
  }
  return left;
}

ExpressionPointer Parser::concatenation() {
  ExpressionPointer first = product();
  if (!sees_symbol("~")) return first;
  ExpressionPointer out = node(ExpressionKind::kConcat, now().line);
  add(*out, std::move(first));
  while (skip_symbol("~")) add(*out, product());
  return out;
}

ExpressionPointer Parser::product() {
  static constexpr std::pair<std::string_view, Operator> kOperators[] = {{"*", Operator::kMultiply},
                                                                         {"/", Operator::kDivide},
                                                                         {"//", Operator::kFloorDivide},
                                                                         {"%", Operator::kRemainder}};
  ExpressionPointer left = power();
  for (;;) {
    const auto* found = std::find_if(std::begin(kOperators), std::end(kOperators),
                                     [&](const auto& entry) { return sees_symbol(entry.first); });
    if (found == std::end(kOperators)) return left;
    const int line = take().line;
    left = binary(found->second, std::move(left), power(), line);
  }
}

ExpressionPointer Parser::power() {
  ExpressionPointer left = unary();
  while (sees_symbol("**")) {
    const int line = take().line;
    left = binary(Operator::kPower, std::move(left), unary(), line);
  }
  return left;
}

ExpressionPointer Parser::unary(bool with_filter) {
  ExpressionPointer out;
  if (sees_symbol("-") || sees_symbol("+")) {
    const Deeper deeper(*this);
    const Token token = take();
    out = node(token.text == "-" ? ExpressionKind::kNegative : ExpressionKind::kPositive, token.line);
    add(*out, unary(false));
  } else {
    out = primary();
  }
  out = postfix(std::move(out));
  return with_filter ? filters_and_tests(std::move(out)) : std::move(out);
}

ExpressionPointer Parser::name_or_constant(bool with_namespace) {
  const Token token = take();
  ExpressionPointer out = node(ExpressionKind::kConstant, token.line);
  if (token.text == "true" || token.text == "True" || token.text == "false" || token.text == "False") {
    out->constant = Value(Value::Held(token.text == "true" || token.text == "True"));
  } else if (token.text == "none" || token.text == "None") {
    out->constant = Value(None{});
  } else if (with_namespace && skip_symbol(".")) {
    out->kind = ExpressionKind::kNamespaceName;
    out->constant = jinja::text(work_, expect(TokenKind::kName, "a name").text);
    out->name = token.text;
  } else {
    out->kind = ExpressionKind::kName;
    out->name = token.text;
    if (!macros_.empty() && (token.text == "varargs" || token.text == "kwargs"))
      work_.refuse_unsupported(fmt::format("`{}` of a macro", token.text));
    if (token.text == "caller") {
      for (MacroDefinition* macro : macros_) macro->uses_caller = true;
    }
  }
  return out;
}

ExpressionPointer Parser::primary(bool with_namespace) {
  work_.at(now().line);
  if (sees(TokenKind::kName)) return name_or_constant(with_namespace);
  if (sees_symbol("[")) return list();
  if (sees_symbol("{")) return dictionary();
  if (skip_symbol("(")) {
    ExpressionPointer out = tuple(true, {}, true);
    expect_symbol(")");
    return out;
  }
  ExpressionPointer out = node(ExpressionKind::kConstant, now().line);
  if (sees(TokenKind::kString)) {
    std::string whole;
    while (sees(TokenKind::kString)) whole += take().text;
    out->constant = jinja::text(work_, std::move(whole));
  } else if (sees(TokenKind::kInteger)) {
    out->constant = Value(Value::Held(take().integer));
  } else if (sees(TokenKind::kFloat)) {
    out->constant = Value(Value::Held(take().number));
  } else {
    refuse(now(), "unexpected " + shown(now()) + ", wanted a value");
  }
  return out;
}

ExpressionPointer Parser::list() {
  ExpressionPointer out = node(ExpressionKind::kList, take().line);
  while (!sees_symbol("]")) {
    if (!out->items.empty()) expect_symbol(",");
    if (sees_symbol("]")) break;
    add(*out, expression());
  }
  expect_symbol("]");
  return out;
}

ExpressionPointer Parser::dictionary() {
  ExpressionPointer out = node(ExpressionKind::kDict, take().line);
  while (!sees_symbol("}")) {
    if (!out->items.empty()) expect_symbol(",");
    if (sees_symbol("}")) break;
    add(*out, expression());
    expect_symbol(":");
    add(*out, expression());
  }
  expect_symbol("}");
  return out;
}

ExpressionPointer Parser::postfix(ExpressionPointer out) {
  for (;;) {
    if (sees_symbol(".") || sees_symbol("["))
      out = subscript(std::move(out));
    else if (sees_symbol("("))
      out = call(std::move(out));
    else
      return out;
  }
}

ExpressionPointer Parser::filters_and_tests(ExpressionPointer out) {
  for (;;) {
    if (skip_symbol("|"))
      out = filter(std::move(out));
    else if (sees_name("is"))
      out = test(std::move(out));
    else if (sees_symbol("("))
      out = call(std::move(out));
    else
      return out;
  }
}

ExpressionPointer Parser::subscript(ExpressionPointer of) {
  const Token token = take();
  if (token.text == "[") return brackets(std::move(of), token.line);
  const Token name = take();
  ExpressionPointer out = node(ExpressionKind::kAttribute, token.line);
  add(*out, std::move(of));
  if (name.kind == TokenKind::kName) {
    out->name = name.text;
  } else if (name.kind == TokenKind::kInteger) {
    out->kind = ExpressionKind::kItem;
    ExpressionPointer index = node(ExpressionKind::kConstant, name.line);
    index->constant = Value(Value::Held(name.integer));
    add(*out, std::move(index));
  } else {
    refuse(name, "unexpected " + shown(name) + ", wanted a name or a number");
  }
  return out;
}

ExpressionPointer Parser::brackets(ExpressionPointer of, int line) {
  ExpressionPointer out = node(ExpressionKind::kItem, line);
  add(*out, std::move(of));
  if (sees_symbol("]")) {
    add(*out, node(ExpressionKind::kTuple, line));
    take();
    return out;
  }
  ExpressionPointer part[3];
  size_t colons = 0;
  for (;;) {
    if (sees_symbol(":") && colons < 2) {
      take();
      ++colons;
    } else if (!sees_symbol("]") && !sees_symbol(",") && !part[colons]) {
      part[colons] = expression();
    } else {
      break;
    }
  }
  if (sees_symbol(",")) {
    if (colons > 0) work_.refuse_unsupported("a slice within a tuple");
    ExpressionPointer whole = node(ExpressionKind::kTuple, line);
    add(*whole, std::move(part[0]));
    while (skip_symbol(",")) add(*whole, expression());
    part[0] = std::move(whole);
  }
  expect_symbol("]");
  if (colons > 0) out->kind = ExpressionKind::kSlice;
  for (size_t i = 0; i < (colons > 0 ? 3U : 1U); ++i) add(*out, std::move(part[i]));
  return out;
}

ExpressionPointer Parser::call(ExpressionPointer of) {
  ExpressionPointer out = node(ExpressionKind::kCall, now().line);
  add(*out, std::move(of));
  arguments(*out);
  return out;
}

std::string Parser::dotted_name() {
  std::string name = expect(TokenKind::kName, "a name").text;
  while (skip_symbol(".")) name.append(1, '.').append(expect(TokenKind::kName, "a name").text);
  return name;
}

ExpressionPointer Parser::filter(ExpressionPointer of) {
  ExpressionPointer out = node(ExpressionKind::kFilter, now().line);
  add(*out, std::move(of));
  out->name = dotted_name();
  if (!jinja_has_filter(out->name)) unknown_.push_back({"no filter is called \"" + out->name + "\"", out->line});
  if (sees_symbol("(")) arguments(*out);
  return out;
}

ExpressionPointer Parser::test(ExpressionPointer of) {
  ExpressionPointer out = node(ExpressionKind::kTest, take().line);
  const bool negated = skip_name("not");
  add(*out, std::move(of));
  out->name = dotted_name();
  if (!jinja_has_test(out->name)) unknown_.push_back({"no test is called \"" + out->name + "\"", out->line});
  const bool begins_value = sees(TokenKind::kName) || sees(TokenKind::kString) || sees(TokenKind::kInteger) ||
                            sees(TokenKind::kFloat) || sees_symbol("[") || sees_symbol("{");
  if (sees_symbol("(")) {
    arguments(*out);
  } else if (begins_value && !sees_one_of({"else", "or", "and"})) {
    if (sees_name("is")) refuse(now(), "tests cannot be chained with is");
    ExpressionPointer argument = postfix(primary());
    deepen(*out, *argument);
    out->arguments.positional.push_back(std::move(argument));
  }
  if (!negated) return out;
  ExpressionPointer no = node(ExpressionKind::kNot, out->line);
  add(*no, std::move(out));
  return no;
}

void Parser::arguments(Expression& call) {
  const int line = now().line;
  expect_symbol("(");
  bool first = true;
  while (!sees_symbol(")")) {
    if (!first) {
      expect_symbol(",");
      if (sees_symbol(")")) break;
    }
    first = false;
    argument(call, line);
  }
  expect_symbol(")");
}

void Parser::argument(Expression& call, int line) {
  CallArguments& to = call.arguments;
  const auto ensure = [&](bool fine) {
    if (fine) return;
    work_.at(line);
    work_.refuse("the arguments of a call stand in the wrong order");
  };
  if (skip_symbol("*")) {
    ensure(!to.more && !to.more_named);
    to.more = expression();
    deepen(call, *to.more);
  } else if (skip_symbol("**")) {
    ensure(!to.more_named);
    to.more_named = expression();
    deepen(call, *to.more_named);
  } else if (sees(TokenKind::kName) && ahead().kind == TokenKind::kOperator && ahead().text == "=") {
    ensure(!to.more_named);
    const Token name = take();
    take();
    for (const auto& [known, value] : to.named) {
      if (known == name.text) refuse(name, "the argument " + shown(name) + " is given twice");
    }
    to.named.emplace_back(name.text, expression());
    deepen(call, *to.named.back().second);
  } else {
    ensure(!to.more && !to.more_named && to.named.empty());
    to.positional.push_back(expression());
    deepen(call, *to.positional.back());
  }
}

}  // namespace limbeck::text::jinja
