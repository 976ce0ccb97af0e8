#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "modules/text/jinja/parser.h"

namespace limbeck::text::jinja {

Parser::Deeper::Deeper(Parser& parser) : parser_(parser) {
  if (++parser_.nesting_ <= parser_.work_.limits().nesting) return;
  --parser_.nesting_;
  parser_.refuse(parser_.now(), fmt::format("brackets and blocks within each other more than {} deep",
                                            parser_.work_.limits().nesting));
}

Token Parser::take() {
  work_.step();
  Token token = tokens_[at_];
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}

void Parser::refuse(const Token& token, const std::string& what) const {
  work_.at(token.line);
  work_.refuse(what);
}

bool Parser::sees_one_of(Words names) const {
  return std::any_of(names.begin(), names.end(), [&](std::string_view name) { return sees_name(name); });
}

bool Parser::skip_symbol(std::string_view symbol) {
  if (!sees_symbol(symbol)) return false;
  take();
  return true;
}

bool Parser::skip_name(std::string_view name) {
  if (!sees_name(name)) return false;
  take();
  return true;
}

Token Parser::expect(TokenKind kind, const std::string& wanted) {
  if (!sees(kind)) refuse(now(), fmt::format("unexpected {}, wanted {}", shown(now()), wanted));
  return take();
}

void Parser::expect_symbol(std::string_view symbol) {
  if (!skip_symbol(symbol)) refuse(now(), fmt::format("unexpected {}, wanted \"{}\"", shown(now()), symbol));
}

void Parser::expect_name(std::string_view name) {
  if (!skip_name(name)) refuse(now(), fmt::format("unexpected {}, wanted \"{}\"", shown(now()), name));
}

void Parser::refuse_unknown_from(size_t first) const {
  if (first >= unknown_.size()) return;
  work_.at(unknown_[first].line);
  work_.refuse(unknown_[first].what);
}

Body Parser::parse() {
  Body body = body_until({});
  refuse_unknown_from(0);
  return body;
}

Body Parser::body_until(Words ends) {
  const Deeper deeper(*this);
  Body body;
  while (!sees(TokenKind::kEnd)) {
    work_.make(sizeof(Statement));
    const Token token = take();
    if (token.kind == TokenKind::kText) {
      body.push_back({.kind = StatementKind::kText, .line = token.line, .text = token.text});
    } else if (token.kind == TokenKind::kPrintBegin) {
      Statement print{.kind = StatementKind::kPrint, .line = token.line};
      print.value = tuple(true);
      expect(TokenKind::kPrintEnd, "}}");
      body.push_back(std::move(print));
    } else if (token.kind == TokenKind::kTagBegin) {
      if (sees_one_of(ends)) return body;
      if (sees_name("print")) {
        print_statement(take().line, body);
      } else {
        body.push_back(statement());
      }
      expect(TokenKind::kTagEnd, "%}");
    } else {
      refuse(token, "unexpected " + shown(token));
    }
  }
  if (ends.size() > 0)
    refuse(now(), fmt::format("unexpected end of the template, wanted {{% {} %}}", *(ends.end() - 1)));
  return body;
}

Body Parser::block(Words ends) {
  skip_symbol(":");
  expect(TokenKind::kTagEnd, "%}");
  return body_until(ends);
}

Body Parser::block_to(std::string_view end) {
  Body body = block({end});
  take();
  return body;
}

Statement Parser::statement() {
  const Token token = expect(TokenKind::kName, "the name of a tag");
  const std::string& name = token.text;
  work_.at(token.line);
  if (name == "if") return if_statement(token.line);
  if (name == "for") return for_statement(token.line);
  if (name == "set") return set_statement(token.line);
  if (name == "with") return with_statement(token.line);
  if (name == "macro") return macro_statement(token.line);
  if (name == "call") return call_statement(token.line);
  if (name == "break") return loop_control(StatementKind::kBreak, token.line);
  if (name == "continue") return loop_control(StatementKind::kContinue, token.line);
  if (name == "generation") {
    MacroDefinition body;  // a body of its own, as that of a macro
    macro_body(body, "endgeneration");
    Statement out{.kind = StatementKind::kGeneration, .line = token.line};
    out.macro = std::make_shared<MacroDefinition>(std::move(body));
    return out;
  }
  if (name == "filter") {
    const size_t unknown = unknown_.size();
    Statement out{.kind = StatementKind::kFilterBlock, .line = token.line};
    out.value = filter(nullptr);
    while (skip_symbol("|")) out.value = filter(std::move(out.value));
    out.body = block_to("endfilter");
    refuse_unknown_from(unknown);
    return out;
  }
  for (const char* known : {"block", "extends", "include", "import", "from", "autoescape"}) {
    if (name == known) work_.refuse_unsupported(fmt::format("{{% {} %}}", name));
  }
  refuse(token, "unknown tag " + shown(token));
}

Statement Parser::loop_control(StatementKind kind, int line) {
  if (loops_ == 0)
    work_.refuse(kind == StatementKind::kBreak ? "break outside of a loop" : "continue outside of a loop");
  return {.kind = kind, .line = line};
}

void Parser::print_statement(int line, Body& out) {
  bool first = true;
  while (!sees(TokenKind::kTagEnd)) {
    if (!first) expect_symbol(",");
    first = false;
    Statement print{.kind = StatementKind::kPrint, .line = line};
    print.value = expression();
    out.push_back(std::move(print));
  }
}

Statement Parser::if_statement(int line) {
  Statement out{.kind = StatementKind::kIf, .line = line};
  const size_t unknown = unknown_.size();
  for (;;) {
    Branch branch;
    branch.condition = tuple(false);
    branch.body = block({"elif", "else", "endif"});
    out.branches.push_back(std::move(branch));
    const Token token = take();
    if (token.text == "elif") continue;
    if (token.text == "else") out.otherwise = block_to("endif");
    break;
  }
  unknown_.resize(std::min(unknown, unknown_.size()));  // refused when they are reached
  return out;
}

Statement Parser::for_statement(int line) {
  Statement out{.kind = StatementKind::kFor, .line = line};
  ++for_blocks_;
  out.target = target(false, {"in"});
  expect_name("in");
  out.value = tuple(false, {"recursive"});
  const size_t unknown = unknown_.size();
  if (skip_name("if")) out.condition = expression();
  if (sees_name("recursive")) work_.refuse_unsupported("a recursive for");
  ++loops_;
  out.body = block({"endfor", "else"});
  --loops_;
  if (take().text == "else") out.otherwise = block_to("endfor");
  refuse_unknown_from(unknown);
  --for_blocks_;
  return out;
}

Statement Parser::set_statement(int line) {
  ExpressionPointer to = target(true);
  if (skip_symbol("=")) {
    Statement out{.kind = StatementKind::kSet, .line = line, .target = std::move(to)};
    out.value = tuple(true);
    return out;
  }
  const size_t unknown = unknown_.size();
  Statement out{.kind = StatementKind::kSetBlock, .line = line, .target = std::move(to)};
  while (skip_symbol("|")) out.value = filter(std::move(out.value));
  out.body = block_to("endset");
  refuse_unknown_from(unknown);
  return out;
}

Statement Parser::with_statement(int line) {
  Statement out{.kind = StatementKind::kWith, .line = line};
  while (!sees(TokenKind::kTagEnd) && !sees(TokenKind::kEnd)) {
    if (!out.assignments.empty()) expect_symbol(",");
    const int for_blocks = std::exchange(for_blocks_, 0);  // a `with` may take the name `loop`
    ExpressionPointer name = target(false);
    for_blocks_ = for_blocks;
    expect_symbol("=");
    out.assignments.emplace_back(std::move(name), expression());
  }
  const size_t unknown = unknown_.size();
  out.body = block_to("endwith");
  refuse_unknown_from(unknown);
  return out;
}

void Parser::signature(MacroDefinition& macro) {
  expect_symbol("(");
  while (!sees_symbol(")")) {
    if (!macro.parameters.empty()) expect_symbol(",");
    const Token name = expect(TokenKind::kName, "the name of a parameter");
    for (const char* special : {"caller", "varargs", "kwargs"}) {
      if (name.text == special) work_.refuse_unsupported(fmt::format("a parameter called {}", special));
    }
    if (std::find(macro.parameters.begin(), macro.parameters.end(), name.text) != macro.parameters.end())
      refuse(name, "two parameters are called " + shown(name));
    for (const char* constant : {"true", "false", "none", "True", "False", "None"}) {
      if (name.text == constant) refuse(name, "cannot assign to " + shown(name));
    }
    if (skip_symbol("="))
      macro.defaults.push_back(expression());
    else if (!macro.defaults.empty())
      refuse(name, "the parameter " + shown(name) + " has no default and stands behind one that has");
    macro.parameters.push_back(name.text);
  }
  expect_symbol(")");
}

void Parser::macro_body(MacroDefinition& macro, std::string_view end) {
  const size_t unknown = unknown_.size();
  const int loops = std::exchange(loops_, 0);
  macros_.push_back(&macro);
  macro.body = std::make_shared<const Body>(block_to(end));
  macros_.pop_back();
  loops_ = loops;
  refuse_unknown_from(unknown);
}

Statement Parser::macro_statement(int line) {
  const Token name = expect(TokenKind::kName, "the name of a macro");
  if (name.text == "loop" && for_blocks_ > 0) refuse(name, "cannot assign to \"loop\" within a for");
  Statement out{.kind = StatementKind::kMacro, .line = line};
  out.macro = std::make_shared<MacroDefinition>();
  out.macro->name = name.text;
  const size_t unknown = unknown_.size();
  signature(*out.macro);
  refuse_unknown_from(unknown);
  macro_body(*out.macro, "endmacro");
  return out;
}

Statement Parser::call_statement(int line) {
  Statement out{.kind = StatementKind::kCallBlock, .line = line};
  out.macro = std::make_shared<MacroDefinition>();
  if (sees_symbol("(")) signature(*out.macro);
  out.value = expression();
  if (out.value->kind != ExpressionKind::kCall) work_.refuse("wanted a call, as in {% call name() %}");
  macro_body(*out.macro, "endcall");
  return out;
}

ExpressionPointer Parser::target(bool with_namespace, Words ends) {
  ExpressionPointer out = comma_separated(ends, [&] { return primary(with_namespace); });
  if (!out) refuse(now(), "unexpected " + shown(now()) + ", wanted a name to assign to");
  check_target(*out);
  return out;
}

void Parser::check_target(const Expression& to) {
  if (to.kind == ExpressionKind::kNamespaceName) return;
  if (to.kind == ExpressionKind::kTuple) {
    for (const ExpressionPointer& item : to.items) check_target(*item);
    return;
  }
  work_.at(to.line);
  if (to.kind != ExpressionKind::kName) work_.refuse("cannot assign to this, wanted a name");
  if (to.name == "loop" && for_blocks_ > 0) work_.refuse("cannot assign to \"loop\" within a for");
}

}  // namespace limbeck::text::jinja
