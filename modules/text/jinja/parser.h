// Tokens to the tree. What Jinja refuses is refused; what Limbeck lacks is refused by name, where it is certain to be
// reached.
#pragma once
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "modules/text/jinja/lexer.h"
#include "modules/text/jinja/syntax.h"

namespace limbeck::text::jinja {

class Parser {
 public:
  Parser(Work& work, std::vector<Token> tokens) : work_(work), tokens_(std::move(tokens)) {}
  Body parse();

 private:
  class Deeper;  // one bracket or block more, while it lives
  using Words = std::initializer_list<std::string_view>;

  // --- tokens
  const Token& now() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Token take();
  bool sees(TokenKind kind) const { return now().kind == kind; }
  bool sees_symbol(std::string_view symbol) const { return sees(TokenKind::kOperator) && now().text == symbol; }
  bool sees_name(std::string_view name) const { return sees(TokenKind::kName) && now().text == name; }
  bool sees_one_of(Words names) const;
  bool skip_symbol(std::string_view symbol);
  bool skip_name(std::string_view name);
  Token expect(TokenKind kind, const std::string& wanted);
  void expect_symbol(std::string_view symbol);
  void expect_name(std::string_view name);
  [[noreturn]] void refuse(const Token& token, const std::string& what) const;

  // --- statements (parse_statements.cpp)
  Body body_until(Words ends);  // behind a tag's start; leaves the end's name for the caller
  Body block(Words ends);       // "%}" and the body
  Body block_to(std::string_view end);
  Statement statement();
  Statement if_statement(int line);
  Statement for_statement(int line);
  Statement set_statement(int line);
  Statement with_statement(int line);
  Statement macro_statement(int line);
  Statement call_statement(int line);
  void print_statement(int line, Body& out);
  Statement loop_control(StatementKind kind, int line);
  void signature(MacroDefinition& macro);
  void macro_body(MacroDefinition& macro, std::string_view end);
  ExpressionPointer target(bool with_namespace, Words ends = {});
  void check_target(const Expression& target);

  // --- expressions (parse_expressions.cpp, parse_values.cpp)
  ExpressionPointer node(ExpressionKind kind, int line);
  void add(Expression& parent, ExpressionPointer child);
  void deepen(Expression& parent, const Expression& child);
  // Parts up to one of `ends`: a tuple where there is a comma, the part itself where there is none, null of no part.
  ExpressionPointer comma_separated(Words ends, const std::function<ExpressionPointer()>& part);
  ExpressionPointer tuple(bool with_condition, Words ends = {}, bool parenthesized = false);
  ExpressionPointer expression(bool with_condition = true);
  ExpressionPointer condition();
  ExpressionPointer disjunction();
  ExpressionPointer conjunction();
  ExpressionPointer negation();
  ExpressionPointer comparison();
  ExpressionPointer sum();
  ExpressionPointer concatenation();
  ExpressionPointer product();
  ExpressionPointer power();
  ExpressionPointer unary(bool with_filter = true);
  ExpressionPointer primary(bool with_namespace = false);
  ExpressionPointer name_or_constant(bool with_namespace);
  ExpressionPointer list();
  ExpressionPointer dictionary();
  ExpressionPointer postfix(ExpressionPointer node);
  ExpressionPointer filters_and_tests(ExpressionPointer node);
  ExpressionPointer subscript(ExpressionPointer node);
  ExpressionPointer brackets(ExpressionPointer node, int line);
  ExpressionPointer call(ExpressionPointer node);
  ExpressionPointer filter(ExpressionPointer node);  // "|" is behind us
  ExpressionPointer test(ExpressionPointer node);
  std::string dotted_name();
  void arguments(Expression& call);
  void argument(Expression& call, int line);
  ExpressionPointer binary(Operator op, ExpressionPointer left, ExpressionPointer right, int line);

  // Filters and tests that Jinja itself does not know: it refuses them unless an `if` stands before them.
  struct Unknown {
    std::string what;
    int line;
  };
  void refuse_unknown_from(size_t first) const;

  Work& work_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
  int loops_ = 0;                         // that a break would leave
  int for_blocks_ = 0;                    // within which `loop` is taken
  std::vector<MacroDefinition*> macros_;  // whose bodies we are in
  std::vector<Unknown> unknown_;
};

class Parser::Deeper {
 public:
  explicit Deeper(Parser& parser);
  ~Deeper() { --parser_.nesting_; }
  Deeper(const Deeper&) = delete;
  Deeper& operator=(const Deeper&) = delete;

 private:
  Parser& parser_;
};

}  // namespace limbeck::text::jinja
