// The tree of a template.
#pragma once
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "modules/text/jinja/value.h"

namespace limbeck::text::jinja {

enum class ExpressionKind {
  kConstant,
  kName,
  kNamespaceName,  // ns.name, as what is assigned to
  kList,
  kTuple,
  kDict,       // items: key, value, key, value
  kAttribute,  // items[0].name
  kItem,       // items[0][items[1]]
  kSlice,      // items[0][items[1]:items[2]:items[3]], each of the three may be null
  kCall,       // items[0](arguments)
  kFilter,     // items[0] | name(arguments); items[0] is null in a filter block
  kTest,       // items[0] is name(arguments)
  kNot,
  kAnd,
  kOr,
  kNegative,
  kPositive,
  kBinary,
  kConcat,
  kCompare,   // items[0] operators[0] items[1] operators[1] ...
  kCondition  // items[1] if items[0] else items[2], which may be null
};

enum class Operator {
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kFloorDivide,
  kRemainder,
  kPower,  // NOLINT: one row each
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn
};

struct Expression;
using ExpressionPointer = std::unique_ptr<Expression>;

struct CallArguments {
  std::vector<ExpressionPointer> positional;
  std::vector<std::pair<std::string, ExpressionPointer>> named;
  ExpressionPointer more, more_named;  // *more, **more_named
};

struct Expression {
  ExpressionKind kind;
  int line;
  int depth = 1;  // of expressions within it
  std::string name;
  Value constant;
  std::vector<ExpressionPointer> items;
  std::vector<Operator> operators;
  CallArguments arguments;
};

struct Statement;
using Body = std::vector<Statement>;

// A macro, or the body of a call block.
struct MacroDefinition {
  std::string name;
  std::vector<std::string> parameters;
  std::vector<ExpressionPointer> defaults;  // of the last parameters
  bool uses_caller = false;
  std::shared_ptr<const Body> body;
};

enum class StatementKind {
  kText,
  kPrint,
  kIf,  // branches, then otherwise
  kFor,
  kSet,
  kSetBlock,
  kMacro,
  kCallBlock,
  kFilterBlock,
  kWith,
  kGeneration,
  kBreak,
  kContinue
};

struct Branch {
  ExpressionPointer condition;
  Body body;
};

struct Statement {
  StatementKind kind;
  int line;
  std::string text{};
  ExpressionPointer target{}, value{}, condition{};
  std::vector<std::pair<ExpressionPointer, ExpressionPointer>> assignments{};  // of `with`
  std::vector<Branch> branches{};
  Body body{}, otherwise{};
  std::shared_ptr<MacroDefinition> macro{};
};

}  // namespace limbeck::text::jinja
