// The `loop` of a for: what has been taken of its items and, only when asked, what comes.
#pragma once
#include <optional>

#include "modules/text/jinja/value.h"

namespace limbeck::text::jinja {

class LoopState {
 public:
  // `known_length`: of what has a len(); otherwise the items are counted when asked.
  LoopState(Work& work, Next next, std::optional<size_t> known_length)
      : work_(work), next_(std::move(next)), length_(known_length) {}

  std::optional<Value> advance();
  // `loop.name`; none: it has no such attribute.
  std::optional<Value> attribute(const std::string& name);
  int64_t index0() const { return index0_; }
  int64_t length();
  bool changed(const Value& values);

 private:
  const std::optional<Value>& peek();

  Work& work_;
  Next next_;
  std::optional<size_t> length_;
  int64_t index0_ = -1;
  bool peeked_ = false;
  std::optional<Value> after_, current_, before_, last_changed_;
};

}  // namespace limbeck::text::jinja
