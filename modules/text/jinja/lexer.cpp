#include "modules/text/jinja/lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "modules/io/tensor_name.h"
#include "modules/text/characters/unicode.h"
#include "modules/text/jinja/python_text.h"
#include "modules/text/jinja/string_literal.h"

namespace limbeck::text::jinja {
namespace {

// Every newline is "\n", and one at the very end is left out.
std::string with_plain_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t at = 0; at < source.size(); ++at) {
    if (source[at] == '\r' && at + 1 < source.size() && source[at + 1] == '\n') continue;
    out += source[at] == '\r' ? '\n' : source[at];
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool begins_name(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

class Lexer {
 public:
  Lexer(Work& work, std::string source) : work_(work), source_(std::move(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) outside();
    add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  // --- small steps
  bool sees(std::string_view text, size_t at) const { return source_.compare(at, text.size(), text) == 0; }
  size_t behind_spaces(size_t at) const {
    while (at < source_.size()) {
      size_t next = at;
      if (!is_space(next_character(source_, next))) break;
      at = next;
    }
    return at;
  }
  Token& add(TokenKind kind, std::string text) {
    work_.step();
    work_.make(sizeof(Token) + text.size());
    return tokens_.emplace_back(Token{kind, line_, std::move(text)});
  }
  // Goes on at `end`; what lies between is matched as one.
  void pass(size_t end) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(end), '\n'));
    begins_line_ = end > at_ && source_[end - 1] == '\n';
    at_ = end;
    work_.at(line_);
  }
  // Behind a tag's end at `at`: "-%}" with all space behind it, "+%}", "%}" with one newline; npos when there is none.
  size_t behind_end(size_t at, std::string_view end) const {
    if (at < source_.size() && source_[at] == '-' && sees(end, at + 1)) return behind_spaces(at + 1 + end.size());
    if (end != "}}" && at < source_.size() && source_[at] == '+' && sees(end, at + 1)) return at + 1 + end.size();
    if (!sees(end, at)) return std::string::npos;
    at += end.size();
    return end != "}}" && at < source_.size() && source_[at] == '\n' ? at + 1 : at;
  }

  // --- text up to the next tag
  void outside() {
    size_t tag = at_;
    const auto is_tag = [&](size_t at) {
      return source_[at] == '{' && at + 1 < source_.size() &&
             (source_[at + 1] == '{' || source_[at + 1] == '%' || source_[at + 1] == '#');
    };
    while (tag < source_.size() && !is_tag(tag)) ++tag;
    if (tag == source_.size()) {
      add(TokenKind::kText, source_.substr(at_));
      return pass(tag);
    }
    const char kind = source_[tag + 1];
    put_text(tag, kind != '{');
    const size_t raw = kind == '%' ? behind_raw(tag) : std::string::npos;
    if (raw != std::string::npos) {
      pass(raw);
      return inside_raw();
    }
    const size_t begin = tag + 2 + (sign_at(tag) == '\0' ? 0 : 1);
    if (kind == '#') {
      pass(begin);
      return comment();
    }
    add(kind == '{' ? TokenKind::kPrintBegin : TokenKind::kTagBegin, "");
    pass(begin);
    inside(kind == '{' ? "}}" : "%}");
  }
  char sign_at(size_t tag) const {
    const char c = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    return c == '-' || c == '+' ? c : '\0';
  }
  // The text from at_ to the tag, without the space that the tag takes away.
  void put_text(size_t tag, bool strips_line) {
    std::string_view text = std::string_view(source_).substr(at_, tag - at_);
    const char sign = sign_at(tag);
    if (sign == '-') {
      text = strip(text, Side::kRight);
    } else if (sign == '\0' && strips_line) {
      const size_t newline = text.rfind('\n');
      const size_t line = newline == text.npos ? 0 : newline + 1;
      if ((line > 0 || begins_line_) && strip(text.substr(line), Side::kBoth).empty()) text = text.substr(0, line);
    }
    if (!text.empty()) add(TokenKind::kText, std::string(text));
    pass(tag);
  }

  // --- {% raw %}
  size_t behind_raw(size_t tag) const {
    size_t at = behind_spaces(tag + 2 + (sign_at(tag) == '\0' ? 0 : 1));
    if (!sees("raw", at)) return std::string::npos;
    at = behind_spaces(at + 3);
    if (sees("-%}", at)) return behind_spaces(at + 3);
    return sees("%}", at) ? at + 2 : std::string::npos;
  }
  void inside_raw() {
    for (size_t tag = source_.find("{%", at_); tag != source_.npos; tag = source_.find("{%", tag + 1)) {
      work_.step();
      const size_t at = behind_spaces(tag + 2 + (sign_at(tag) == '\0' ? 0 : 1));
      if (!sees("endraw", at)) continue;
      const size_t end = behind_end(behind_spaces(at + 6), "%}");
      if (end == source_.npos) continue;
      put_text(tag, true);
      return pass(end);
    }
    if (at_ < source_.size()) work_.refuse("{% raw %} has no end, wanted {% endraw %}");
  }

  void comment() {
    for (size_t at = at_; at < source_.size(); ++at) {
      const size_t end = behind_end(at, "#}");
      if (end != source_.npos) return pass(end);
    }
    if (at_ < source_.size()) work_.refuse("a comment has no end, wanted #}");
  }

  // --- within a tag
  void inside(std::string_view end) {
    std::string open;
    while (at_ < source_.size()) {
      const size_t behind = open.empty() ? behind_end(at_, end) : std::string::npos;
      if (behind != std::string::npos) {
        add(end == "}}" ? TokenKind::kPrintEnd : TokenKind::kTagEnd, "");
        return pass(behind);
      }
      const size_t spaces = behind_spaces(at_);
      if (spaces > at_) {
        pass(spaces);
        continue;
      }
      if (!number() && !name() && !string()) symbol(open);
    }
  }
  // Digits with single underscores between them; npos when there are none.
  size_t behind_digits(size_t at) const {
    if (at >= source_.size() || !is_digit(source_[at])) return std::string::npos;
    while (at < source_.size() &&
           (is_digit(source_[at]) || (source_[at] == '_' && at + 1 < source_.size() && is_digit(source_[at + 1]))))
      ++at;
    return at;
  }
  size_t behind_float(size_t at) const {
    if (at > 0 && source_[at - 1] == '.') return std::string::npos;
    size_t end = behind_digits(at);
    if (end == std::string::npos) return end;
    bool whole = true;
    if (end < source_.size() && source_[end] == '.') {
      const size_t fraction = behind_digits(end + 1);
      if (fraction != std::string::npos) {
        end = fraction;
        whole = false;
      }
    }
    if (end < source_.size() && (source_[end] | 0x20) == 'e') {
      const size_t sign = end + 1 < source_.size() && (source_[end + 1] == '+' || source_[end + 1] == '-') ? 1 : 0;
      const size_t exponent = behind_digits(end + 1 + sign);
      if (exponent != std::string::npos) return exponent;
    }
    return whole ? std::string::npos : end;
  }
  static bool is_digit_of(char c, int base) {
    if (base <= 10) return c >= '0' && c < '0' + base;
    return is_digit(c) || ((c | 0x20) >= 'a' && (c | 0x20) <= 'f');
  }
  size_t behind_integer(size_t at, int& base) const {
    base = 10;
    const char letter =
        source_[at] == '0' && at + 1 < source_.size() ? static_cast<char>(source_[at + 1] | 0x20) : '\0';
    base = letter == 'b' ? 2 : letter == 'o' ? 8 : letter == 'x' ? 16 : 10;
    if (base != 10) {
      size_t end = at + 2;
      const auto digit = [&](size_t i) { return i < source_.size() && is_digit_of(source_[i], base); };
      while (digit(end) || (end < source_.size() && source_[end] == '_' && digit(end + 1))) ++end;
      if (end > at + 2) return end;
      base = 10;
    }
    if (source_[at] != '0') return behind_digits(at);
    while (at < source_.size() && (source_[at] == '0' || sees("_0", at))) ++at;
    return at;
  }
  bool number() {
    if (!is_digit(source_[at_])) return false;
    size_t end = behind_float(at_);
    int base = 10;
    const bool is_float = end != std::string::npos;
    if (!is_float) end = behind_integer(at_, base);
    std::string digits = source_.substr(at_, end - at_);
    Token& token = add(is_float ? TokenKind::kFloat : TokenKind::kInteger, digits);
    digits.erase(std::remove(digits.begin(), digits.end(), '_'), digits.end());
    if (is_float) {
      token.number = *parse_float(digits);
    } else {
      bool too_big = false;
      const auto value = parse_integer(digits, base, too_big);
      if (!value || too_big) work_.refuse_unsupported("the integer " + digits + " (beyond 64 bits)");
      token.integer = *value;
    }
    pass(end);
    return true;
  }
  bool name() {
    if (!begins_name(source_[at_])) return false;
    size_t end = at_;
    while (end < source_.size() && (begins_name(source_[end]) || is_digit(source_[end]))) ++end;
    add(TokenKind::kName, source_.substr(at_, end - at_));
    pass(end);
    return true;
  }
  bool string() {
    const char quote = source_[at_];
    if (quote != '\'' && quote != '"') return false;
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) work_.refuse(fmt::format("a text has no end, wanted {}", quote));
    add(TokenKind::kString, unescaped(work_, std::string_view(source_).substr(at_ + 1, end - at_ - 1)));
    pass(end + 1);
    return true;
  }
  void symbol(std::string& open) {
    static constexpr std::string_view kTwo[] = {"//", "**", "==", "!=", ">=", "<="};
    const bool two = std::any_of(std::begin(kTwo), std::end(kTwo), [&](std::string_view op) { return sees(op, at_); });
    const char c = source_[at_];
    static constexpr std::string_view kOne = "+-/*%~[](){}><=.:|,;";
    if (!two && kOne.find(c) == kOne.npos) refuse_character();
    if (c == '{' || c == '(' || c == '[') open += c == '{' ? '}' : c == '(' ? ')' : ']';
    if (c == '}' || c == ')' || c == ']') {
      if (open.empty()) work_.refuse(fmt::format("unexpected '{}'", c));
      if (open.back() != c) work_.refuse(fmt::format("unexpected '{}', wanted '{}'", c, open.back()));
      open.pop_back();
    }
    add(TokenKind::kOperator, source_.substr(at_, two ? 2 : 1));
    pass(at_ + (two ? 2 : 1));
  }
  [[noreturn]] void refuse_character() const {
    size_t end = at_;
    const char32_t c = next_character(source_, end);
    const std::string seen = io::in_quotes(std::string_view(source_).substr(at_, end - at_));
    if (is_letter(c)) work_.refuse_unsupported("a name with the letter " + seen);
    work_.refuse("unexpected " + seen);
  }

  Work& work_;
  std::string source_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int line_ = 1;
  bool begins_line_ = true;
};

}  // namespace

std::vector<Token> lex(Work& work, std::string_view source) {
  if (source.size() > work.limits().template_bytes) {
    work.refuse(
        fmt::format("the template has {} bytes, at most {} are read", source.size(), work.limits().template_bytes));
  }
  return Lexer(work, with_plain_newlines(source)).run();
}

std::string shown(const Token& token) {
  switch (token.kind) {
    case TokenKind::kText:
      return "text";
    case TokenKind::kPrintBegin:
      return "{{";
    case TokenKind::kPrintEnd:
      return "}}";
    case TokenKind::kTagBegin:
      return "{%";
    case TokenKind::kTagEnd:
      return "%}";
    case TokenKind::kEnd:
      return "the end of the template";
    default:
      return io::in_quotes(token.text);
  }
}

}  // namespace limbeck::text::jinja
