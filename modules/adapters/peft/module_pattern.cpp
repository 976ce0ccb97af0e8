#include "modules/adapters/peft/module_pattern.h"

#include <fmt/format.h>
#include <re2/re2.h>

#include <array>
#include <string_view>

#include "modules/io/tensor_name.h"

namespace limbeck::adapters {
namespace {

constexpr size_t kMostOfPattern = 1000;
constexpr int64_t kMostMemory = int64_t{1} << 19;  // of one pattern's automaton, some 5,000 steps

// Python's re reads these otherwise than RE2 does, or not at all: neither guess would be what PEFT adapted.
constexpr std::array<std::string_view, 7> kReadOtherwise = {"{,", "[:", "\\Q", "\\C", "\\p", "\\P", "\\z"};

bool is_plain(const std::string& text) {
  return text.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") == text.npos;
}

re2::RE2::Options expression_options() {
  re2::RE2::Options wanted;
  wanted.set_log_errors(false);
  wanted.set_never_capture(true);
  wanted.set_max_mem(kMostMemory);
  return wanted;
}

}  // namespace

ModulePattern::ModulePattern(std::string text) : text_(std::move(text)) {
  if (text_.size() > kMostOfPattern) {
    fault_ = fmt::format("pattern {} has {} characters, wanted at most {}", io::in_quotes(text_), text_.size(),
                         kMostOfPattern);
    return;
  }
  if (is_plain(text_)) return;
  for (const std::string_view what : kReadOtherwise) {
    if (text_.find(what) == text_.npos) continue;
    fault_ = fmt::format("pattern {}: {} is not supported, spell it out", io::in_quotes(text_), what);
    return;
  }
  expression_ = std::make_shared<const re2::RE2>("(?:.*\\.)?(?:" + text_ + ")", expression_options());
  if (expression_->ok()) return;
  fault_ = fmt::format(
      "pattern {} is no regular expression that is matched in linear time ({}); lookahead and backreferences "
      "are not supported: name the modules without them",
      io::in_quotes(text_), expression_->error());
}

size_t ModulePattern::steps() const {
  return expression_ && expression_->ok() ? static_cast<size_t>(expression_->ProgramSize()) : 0;
}

bool ModulePattern::names(const std::string& module) const {
  if (!fault_.empty()) return false;
  if (expression_) return re2::RE2::FullMatch(module, *expression_);
  if (!module.ends_with(text_)) return false;
  return module.size() == text_.size() || module[module.size() - text_.size() - 1] == '.';
}

}  // namespace limbeck::adapters
