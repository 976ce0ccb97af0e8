// A value of a template, as Python has it: texts, numbers, lists, dicts and what iterates. All but a namespace and an
// iterator is immutable, as in Jinja's ImmutableSandboxedEnvironment, so values share their parts freely.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "modules/text/jinja/work.h"

namespace limbeck::text::jinja {

class Value;
using Items = std::vector<Value>;
using Entries = std::vector<std::pair<Value, Value>>;
using Next = std::function<std::optional<Value>()>;

struct Undefined {
  std::shared_ptr<const std::string> why;  // what is said when it is used
};
struct None {};
struct TextData {
  std::string bytes;  // UTF-8
  bool markup;        // what `safe` and `escape` give: adding to it escapes
};
enum class SequenceKind { kList, kTuple, kRange, kKeys, kValues, kPairs };
struct SequenceData;
struct DictData;
struct Iterator {
  Next next;
  int depth;
};
struct Namespace {
  std::vector<std::pair<std::string, Value>> names;
};
class LoopState;
struct MacroDefinition;
struct Scope;
struct FunctionData;

using Text = std::shared_ptr<const TextData>;
using Sequence = std::shared_ptr<const SequenceData>;
using Dict = std::shared_ptr<const DictData>;
using Function = std::shared_ptr<const FunctionData>;

class Value {
 public:
  using Held = std::variant<Undefined, None, bool, int64_t, double, Text, Sequence, Dict, std::shared_ptr<Iterator>,
                            std::shared_ptr<Namespace>, Function, std::shared_ptr<LoopState>>;
  Value() = default;  // undefined
  explicit Value(Held held) : held_(std::move(held)) {}

  template <typename T>
  const T* as() const {
    return std::get_if<T>(&held_);
  }
  template <typename T>
  bool is() const {
    return std::holds_alternative<T>(held_);
  }
  const Held& held() const { return held_; }

 private:
  Held held_;
};

struct SequenceData {
  Items items;
  SequenceKind kind = SequenceKind::kList;
  int depth = 1;                            // of values within values
  int64_t start = 0, stop = 0, stride = 1;  // as a range prints itself
};
struct DictData {
  Entries entries;
  int depth = 1;
};
struct FunctionData {
  std::string name;           // of a global function or a method
  std::optional<Value> self;  // of a method
  const MacroDefinition* macro = nullptr;
  Scope* scope = nullptr;  // where the macro was defined; kept by the evaluator to the end
};

// --- making values: counted, and no deeper than the limit
Value undefined(std::string why);
Value text(Work& work, std::string bytes, bool markup = false);
Value sequence(Work& work, Items items, SequenceKind kind = SequenceKind::kList);
Value dict(Work& work, Entries entries);  // as they are: keys must differ
Value iterator(Work& work, Next next, int source_depth);
void put(Work& work, Entries& entries, const Value& key, Value value);
int depth_of(const Value& value);

// --- what Python's built-in functions say of them
std::string type_name(const Value& value);
std::string quoted_type(const Value& value);  // as Python's messages have it: 'int'
bool truth(const Value& value);
bool equal(Work& work, const Value& a, const Value& b);
bool less(Work& work, const Value& a, const Value& b,
          const char* shown);  // TypeError otherwise: `shown` is the operator
bool hashable(Work& work, const Value& value);
std::optional<size_t> length(const Value& value);  // none: it has no len()
bool iterable(const Value& value);
Next iterate(Work& work, const Value& value);  // refuses what is not iterable
Items listed(Work& work, const Value& value);
const Value* find(Work& work, const DictData& dict, const Value& key);
std::string to_text(Work& work, const Value& value);  // str()
std::string to_repr(Work& work, const Value& value);  // repr()

// Text of a str, or null.
const std::string* text_of(const Value& value);
bool is_markup(const Value& value);
// int and bool as integers; none for others.
std::optional<int64_t> integer_of(const Value& value);
[[noreturn]] void refuse_undefined(Work& work, const Value& value);

}  // namespace limbeck::text::jinja
