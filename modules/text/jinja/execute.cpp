// The statements of a template.
#include <fmt/format.h>

#include "modules/text/jinja/evaluator.h"
#include "modules/text/jinja/loop_state.h"

namespace limbeck::text::jinja {

void Scope::set(const std::string& name, Value value) {
  for (auto& [known, held] : names) {
    if (known != name) continue;
    held = std::move(value);
    return;
  }
  names.emplace_back(name, std::move(value));
}

const Value* Scope::find(const std::string& name) const {
  for (const Scope* scope = this; scope != nullptr; scope = scope->parent) {
    for (const auto& [known, held] : scope->names) {
      if (known == name) return &held;
    }
  }
  return nullptr;
}

// Macros point to scopes and are held by them, namespaces may hold each other: emptied, nothing is left in a circle.
Evaluator::~Evaluator() {
  for (const auto& space : namespaces_) space->names.clear();
  for (const auto& scope : kept_scopes_) scope->names.clear();
}

std::string Evaluator::run(const Body& body, const std::vector<std::pair<std::string, Value>>& variables) {
  Scope given(nullptr);
  given.names = variables;
  const auto top = std::make_shared<Scope>(&given);
  top->kept = true;
  kept_scopes_.push_back(top);
  std::string out;
  out_ = &out;
  execute(body, *top);
  for (const auto& space : namespaces_) space->names.clear();
  for (const auto& scope : kept_scopes_) scope->names.clear();
  return out;
}

void Evaluator::write(const std::string& text) {
  if (text.size() > work_.limits().output_bytes - out_->size())
    work_.refuse(fmt::format("the text is longer than {} MiB, wanted a prompt", work_.limits().output_bytes >> 20));
  work_.make(text.size());
  *out_ += text;
}

Evaluator::Flow Evaluator::execute(const Body& body, Scope& scope) {
  const Work::Level level(work_);
  for (const Statement& statement : body) {
    work_.step();
    work_.at(statement.line);
    const Flow flow = execute(statement, scope);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Evaluator::Flow Evaluator::execute(const Statement& statement, Scope& scope) {
  switch (statement.kind) {
    case StatementKind::kText:
      write(statement.text);
      break;
    case StatementKind::kPrint:
      write(to_text(work_, evaluate(*statement.value, scope)));
      break;
    case StatementKind::kIf:
      return run_if(statement, scope);
    case StatementKind::kFor:
      run_for(statement, scope);
      break;
    case StatementKind::kSet: {
      const Value value = evaluate(*statement.value, scope);
      assign(*statement.target, value, scope);
      break;
    }
    case StatementKind::kSetBlock:
    case StatementKind::kFilterBlock:
      return run_captured(statement, scope);
    case StatementKind::kMacro:
      scope.set(statement.macro->name, macro_value(*statement.macro, scope));
      break;
    case StatementKind::kCallBlock:
      run_call_block(statement, scope);
      break;
    case StatementKind::kWith:
      return run_with(statement, scope);
    case StatementKind::kGeneration:
      run_generation(statement, scope);
      break;
    case StatementKind::kBreak:
      return Flow::kBreak;
    case StatementKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

Evaluator::Flow Evaluator::run_if(const Statement& statement, Scope& scope) {
  for (const Branch& branch : statement.branches) {
    if (truth(evaluate(*branch.condition, scope))) return execute(branch.body, scope);
  }
  return execute(statement.otherwise, scope);
}

void Evaluator::run_for(const Statement& statement, Scope& scope) {
  const Value items = evaluate(*statement.value, scope);
  Next next = iterate(work_, items);
  std::optional<size_t> size = length(items);
  if (statement.condition) {
    // Asked as the loop comes to each item, because the body may change what the condition looks at.
    size.reset();
    next = [this, &statement, &scope, all = std::move(next)]() -> std::optional<Value> {
      while (auto item = all()) {
        Scope inner(&scope);
        assign(*statement.target, *item, inner);
        if (truth(evaluate(*statement.condition, inner))) return item;
      }
      return std::nullopt;
    };
  }
  const auto loop = std::make_shared<LoopState>(work_, std::move(next), size);
  const auto inner = std::make_shared<Scope>(&scope);
  bool came_to_the_end = false;  // of the body: Jinja's else looks at this, so a loop of `continue` alone has its else
  while (auto item = loop->advance()) {
    work_.step();
    inner->names.clear();
    inner->set("loop", Value(loop));
    assign(*statement.target, *item, *inner);
    const Flow flow = execute(statement.body, *inner);
    if (flow == Flow::kBreak) break;
    if (flow == Flow::kNext) came_to_the_end = true;
  }
  inner->names.clear();
  if (came_to_the_end || statement.otherwise.empty()) return;
  execute(statement.otherwise, *std::make_shared<Scope>(&scope));
}

Evaluator::Flow Evaluator::run_captured(const Statement& statement, Scope& scope) {
  const auto inner = std::make_shared<Scope>(&scope);
  std::string captured;
  std::string* const outer = std::exchange(out_, &captured);
  const Flow flow = execute(statement.body, *inner);
  out_ = outer;
  if (flow != Flow::kNext) return flow;
  Value value = text(work_, std::move(captured));
  if (statement.value) {
    // The innermost filter has no value of its own: it is what was captured.
    inner->set("", value);
    value = evaluate(*statement.value, *inner);
  }
  if (statement.kind == StatementKind::kSetBlock)
    assign(*statement.target, value, scope);
  else
    write(to_text(work_, value));
  return flow;
}

Evaluator::Flow Evaluator::run_with(const Statement& statement, Scope& scope) {
  const auto inner = std::make_shared<Scope>(&scope);
  for (const auto& [name, value] : statement.assignments) {
    const Value held = evaluate(*value, scope);
    assign(*name, held, *inner);
  }
  return execute(statement.body, *inner);
}

// transformers marks where an assistant's words stand; here the words alone matter. They are a body like a macro's.
void Evaluator::run_generation(const Statement& statement, Scope& scope) {
  const Value body = macro_value(*statement.macro, scope);
  write(to_text(work_, call(body, {})));
}

void Evaluator::run_call_block(const Statement& statement, Scope& scope) {
  const Value caller = macro_value(*statement.macro, scope);
  write(to_text(work_, evaluate_call(*statement.value, scope, &caller)));
}

Value Evaluator::macro_value(const MacroDefinition& macro, Scope& scope) {
  work_.make(sizeof(Scope) + sizeof(FunctionData));
  for (Scope* outer = &scope; outer->parent != nullptr && !outer->kept; outer = outer->parent) {
    outer->kept = true;
    kept_scopes_.push_back(outer->shared_from_this());
  }
  auto function = std::make_shared<FunctionData>();
  function->name = macro.name;
  function->macro = &macro;
  function->scope = &scope;
  return Value(Function(std::move(function)));
}

void Evaluator::assign(const Expression& target, const Value& value, Scope& scope) {
  if (target.kind == ExpressionKind::kTuple) return unpack(target, value, scope);
  if (target.kind == ExpressionKind::kName) {
    work_.make(target.name.size() + sizeof(Value));
    return scope.set(target.name, value);
  }
  const Value* held = scope.find(target.name);
  const auto* space = held == nullptr ? nullptr : held->as<std::shared_ptr<Namespace>>();
  if (space == nullptr) {
    work_.refuse(fmt::format("{} is no namespace, wanted one to set its {}", target.name, *text_of(target.constant)));
  }
  for (auto& [name, old] : (*space)->names) {
    if (name != *text_of(target.constant)) continue;
    old = value;
    return;
  }
  work_.make(sizeof(Value) + 32);
  (*space)->names.emplace_back(*text_of(target.constant), value);
}

void Evaluator::unpack(const Expression& target, const Value& value, Scope& scope) {
  const Next next = iterate(work_, value);
  Items items;
  while (items.size() <= target.items.size()) {
    auto item = next();
    if (!item) break;
    items.push_back(std::move(*item));
  }
  if (items.size() != target.items.size()) {
    work_.refuse(fmt::format("{} values to unpack, wanted {}",
                             items.size() > target.items.size() ? "too many" : std::to_string(items.size()),
                             target.items.size()));
  }
  for (size_t i = 0; i < items.size(); ++i) assign(*target.items[i], items[i], scope);
}

}  // namespace limbeck::text::jinja
