// Values, what is behind them (a.b, a[b], a(b), a | b, a is b) and the arguments of calls.
#include <fmt/format.h>

#include <utility>

#include "modules/text/jinja/filters.h"
#include "modules/text/jinja/parser.h"
#include "modules/text/jinja/predicates.h"

namespace limbeck::text::jinja {

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
