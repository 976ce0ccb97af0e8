#include "modules/io/tensor_name.h"

#include <cstdint>

namespace limbeck::io {
namespace {

constexpr size_t kShownBytes = 160;

struct Codepoint {
  uint32_t value = 0;
  size_t bytes = 0;  // 0: not UTF-8
};

// Shortest form only, no surrogates, at most U+10FFFF.
Codepoint decode(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[at + i])); };
  const uint32_t first = byte(0);
  if (first < 0x80) return {first, 1};
  const size_t bytes = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() - at < bytes) return {};
  uint32_t value = first & (0xFFu >> (bytes + 1));
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {};
    value = (value << 6) | (byte(i) & 0x3F);
  }
  const bool overlong = (bytes == 3 && value < 0x800) || (bytes == 4 && value < 0x10000);
  if (overlong || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) return {};
  return {value, bytes};
}

bool is_control(uint32_t value) { return value < 0x20 || (value >= 0x7F && value < 0xA0); }

}  // namespace

bool is_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Codepoint point = decode(text, at);
    if (point.bytes == 0) return false;
    at += point.bytes;
  }
  return true;
}

std::string name_fault(std::string_view name) {
  if (name.empty()) return "is empty";
  if (name.size() > kMaxNameBytes) {
    return "has " + std::to_string(name.size()) + " bytes, at most " + std::to_string(kMaxNameBytes) + " are allowed";
  }
  for (size_t at = 0; at < name.size();) {
    const Codepoint point = decode(name, at);
    if (point.bytes == 0) return "is not UTF-8 at byte " + std::to_string(at);
    if (is_control(point.value)) return "holds a control character at byte " + std::to_string(at);
    at += point.bytes;
  }
  if (name == "__metadata__") return "is reserved";
  return {};
}

std::string in_quotes(std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string shown = "\"";
  size_t at = 0;
  while (at < text.size() && at < kShownBytes) {
    const Codepoint point = decode(text, at);
    const size_t bytes = point.bytes == 0 ? 1 : point.bytes;
    if (point.bytes == 0 || is_control(point.value)) {
      for (size_t i = 0; i < bytes; ++i) {
        const auto byte = static_cast<unsigned char>(text[at + i]);
        shown += std::string("\\x") + kHex[byte >> 4] + kHex[byte & 15];
      }
    } else {
      shown += text.substr(at, bytes);
    }
    at += bytes;
  }
  if (at < text.size()) shown += "...";
  return shown + "\"";
}

}  // namespace limbeck::io
