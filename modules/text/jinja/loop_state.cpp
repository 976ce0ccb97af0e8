#include "modules/text/jinja/loop_state.h"

#include <memory>
#include <utility>

namespace limbeck::text::jinja {

const std::optional<Value>& LoopState::peek() {
  if (!peeked_) {
    after_ = next_();
    peeked_ = true;
  }
  return after_;
}

std::optional<Value> LoopState::advance() {
  std::optional<Value> item = peek();
  peeked_ = false;
  after_.reset();
  if (!item) return item;
  ++index0_;
  before_ = std::exchange(current_, item);
  return item;
}

int64_t LoopState::length() {
  if (!length_) {
    auto rest = std::make_shared<Items>();
    size_t at = peeked_ && after_ ? 1 : 0;
    if (!peeked_ || after_) {
      while (auto item = next_()) {
        work_.make(sizeof(Value));
        rest->push_back(std::move(*item));
      }
    }
    length_ = rest->size() + static_cast<size_t>(index0_ + 1) + at;
    next_ = [rest, i = size_t{0}]() mutable -> std::optional<Value> {
      if (i == rest->size()) return std::nullopt;
      return (*rest)[i++];
    };
  }
  return static_cast<int64_t>(*length_);
}

bool LoopState::changed(const Value& values) {
  if (last_changed_ && equal(work_, *last_changed_, values)) return false;
  last_changed_ = values;
  return true;
}

std::optional<Value> LoopState::attribute(const std::string& name) {
  const auto number = [](int64_t value) { return Value(Value::Held(value)); };
  const auto flag = [](bool value) { return Value(Value::Held(value)); };
  if (name == "index") return number(index0_ + 1);
  if (name == "index0") return number(index0_);
  if (name == "length") return number(length());
  if (name == "revindex") return number(length() - index0_);
  if (name == "revindex0") return number(length() - index0_ - 1);
  if (name == "first") return flag(index0_ == 0);
  if (name == "last") return flag(!peek());
  if (name == "depth") return number(1);
  if (name == "depth0") return number(0);
  if (name == "previtem") return index0_ == 0 || !before_ ? undefined("there is no previous item") : *before_;
  if (name == "nextitem") return peek() ? *peek() : undefined("there is no next item");
  return std::nullopt;
}

}  // namespace limbeck::text::jinja
