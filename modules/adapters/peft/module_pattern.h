// A pattern that names modules, by PEFT's rule: a regular expression that is the module's name or what follows a dot in
// it, to its end. An adapter folder is a stranger's, so a match takes time linear in the name whatever the pattern
// says; what has no such automaton (lookahead, backreferences) is a fault, not a wait.
#pragma once
#include <memory>
#include <string>

namespace re2 {
class RE2;
}

namespace limbeck::adapters {

class ModulePattern {
 public:
  ModulePattern(std::string text);  // NOLINT: a string is a pattern wherever one is wanted

  const std::string& text() const { return text_; }
  const std::string& fault() const { return fault_; }  // what is wrong with it, or ""; then it names nothing
  bool names(const std::string& module) const;
  size_t steps() const;  // of its automaton; 0 for a plain name

 private:
  std::string text_, fault_;
  std::shared_ptr<const re2::RE2> expression_;  // null: a plain name, compared as it is
};

}  // namespace limbeck::adapters
