// Operators, from `if` down to signs.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "modules/text/jinja/parser.h"

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

ExpressionPointer Parser::comma_separated(Words ends, const std::function<ExpressionPointer()>& part) {
  const int line = now().line;
  std::vector<ExpressionPointer> parts;
  bool is_tuple = false;
  for (;;) {
    if (!parts.empty()) expect_symbol(",");
    if (sees(TokenKind::kPrintEnd) || sees(TokenKind::kTagEnd) || sees_symbol(")") || sees_one_of(ends)) break;
    parts.push_back(part());
    if (!sees_symbol(",")) break;
    is_tuple = true;
  }
  if (parts.empty()) return nullptr;
  if (!is_tuple) return std::move(parts.front());
  ExpressionPointer out = node(ExpressionKind::kTuple, line);
  for (ExpressionPointer& one : parts) add(*out, std::move(one));
  return out;
}

ExpressionPointer Parser::tuple(bool with_condition, Words ends, bool parenthesized) {
  const Deeper deeper(*this);
  const int line = now().line;
  ExpressionPointer out = comma_separated(ends, [&] { return expression(with_condition); });
  if (out) return out;
  if (!parenthesized) refuse(now(), "unexpected " + shown(now()) + ", wanted an expression");
  return node(ExpressionKind::kTuple, line);
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

}  // namespace limbeck::text::jinja
