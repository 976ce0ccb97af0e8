// Renders a tree. One evaluator is one rendering: it owns what macros and namespaces may hold on to, and counts.
#pragma once
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "modules/text/jinja/syntax.h"
#include "modules/text/jinja/value.h"

namespace limbeck::text::jinja {

// Names as they nest. A name that is set stays in its scope; what is read may stand further out.
struct Scope : std::enable_shared_from_this<Scope> {
  explicit Scope(Scope* parent_scope) : parent(parent_scope) {}
  void set(const std::string& name, Value value);
  const Value* find(const std::string& name) const;

  Scope* parent;
  std::vector<std::pair<std::string, Value>> names;
  bool kept = false;  // to the end, for a macro that was defined in it
};

struct Arguments {
  Items positional;
  std::vector<std::pair<std::string, Value>> named;
};

class Evaluator {
 public:
  explicit Evaluator(Work& work) : work_(work) {}
  ~Evaluator();
  Evaluator(const Evaluator&) = delete;
  Evaluator& operator=(const Evaluator&) = delete;

  std::string run(const Body& body, const std::vector<std::pair<std::string, Value>>& variables);

  Work& work() { return work_; }
  Value filter(const std::string& name, const Value& value, const Arguments& arguments);
  bool test(const std::string& name, const Value& value, const Arguments& arguments);
  std::shared_ptr<Namespace> new_namespace();

 private:
  enum class Flow { kNext, kBreak, kContinue };

  // --- statements (execute.cpp)
  Flow execute(const Body& body, Scope& scope);
  Flow execute(const Statement& statement, Scope& scope);
  Flow run_if(const Statement& statement, Scope& scope);
  void run_for(const Statement& statement, Scope& scope);
  Flow run_captured(const Statement& statement, Scope& scope);  // set block and filter block
  Flow run_with(const Statement& statement, Scope& scope);
  void run_generation(const Statement& statement, Scope& scope);
  void run_call_block(const Statement& statement, Scope& scope);
  void assign(const Expression& target, const Value& value, Scope& scope);
  void unpack(const Expression& target, const Value& value, Scope& scope);
  void write(const std::string& text);
  Value macro_value(const MacroDefinition& macro, Scope& scope);

  // --- expressions (evaluate.cpp)
  Value evaluate(const Expression& expression, Scope& scope);
  Value evaluate_inner(const Expression& expression, Scope& scope);
  Value evaluate_name(const Expression& expression, const Scope& scope);
  Value evaluate_items(const Expression& expression, Scope& scope);
  Value evaluate_slice(const Expression& expression, Scope& scope);
  Value evaluate_concat(const Expression& expression, Scope& scope);
  Value evaluate_compare(const Expression& expression, Scope& scope);
  bool compare(Operator op, const Value& left, const Value& right);
  Value evaluate_call(const Expression& expression, Scope& scope, const Value* caller);
  Arguments evaluate_arguments(const CallArguments& arguments, Scope& scope);
  Value call(const Value& callee, Arguments arguments);
  Value call_macro(const FunctionData& function, Arguments arguments);

  Work& work_;
  std::string* out_ = nullptr;
  std::vector<std::shared_ptr<Scope>> kept_scopes_;
  std::vector<std::shared_ptr<Namespace>> namespaces_;
};

}  // namespace limbeck::text::jinja
