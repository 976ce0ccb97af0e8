// The tokens of a template: text between tags, and what stands within them. Whitespace is controlled as transformers
// sets it (trim_blocks, lstrip_blocks, no trailing newline).
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "modules/text/jinja/work.h"

namespace limbeck::text::jinja {

enum class TokenKind {
  kText,
  kPrintBegin,
  kPrintEnd,
  kTagBegin,
  kTagEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd
};

struct Token {
  TokenKind kind;
  int line;
  std::string text;  // of strings and texts, as they are meant; of operators and names, as they are written
  int64_t integer = 0;
  double number = 0;
};

std::vector<Token> lex(Work& work, std::string_view source);
// What a message calls it.
std::string shown(const Token& token);

}  // namespace limbeck::text::jinja
