#include "modules/text/jinja/write_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "modules/text/characters/unicode.h"
#include "modules/text/jinja/python_text.h"

namespace limbeck::text::jinja {
namespace {

class JsonWriter {
 public:
  JsonWriter(Work& work, const JsonStyle& style) : work_(work), style_(style) {}
  std::string run(const Value& value) {
    write(value, 0);
    return std::move(out_);
  }

 private:
  void put(std::string_view part) {
    work_.make(part.size());
    out_ += part;
  }
  void write(const Value& value, int level) {
    const Work::Level deeper(work_);
    work_.step();
    if (const std::string* string = text_of(value)) return write_text(*string);
    if (const auto* items = value.as<Sequence>(); items != nullptr && (*items)->kind <= SequenceKind::kTuple)
      return write_items((*items)->items, level);
    if (const auto* entries = value.as<Dict>()) return write_entries((*entries)->entries, level);
    if (auto plain = scalar(value)) return put(*plain);
    work_.refuse("Object of type " + type_name(value) + " is not JSON serializable");
  }
  static std::optional<std::string> scalar(const Value& value) {
    if (value.is<None>()) return "null";
    if (const auto* flag = value.as<bool>()) return *flag ? "true" : "false";
    if (const auto* number = value.as<int64_t>()) return std::to_string(*number);
    const auto* number = value.as<double>();
    if (number == nullptr) return std::nullopt;
    if (std::isnan(*number)) return "NaN";
    if (std::isinf(*number)) return *number < 0 ? "-Infinity" : "Infinity";
    return shown(*number);
  }
  void write_items(const Items& items, int level) {
    if (items.empty()) return put("[]");
    put("[");
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) put(style_.item);
      new_line(level + 1);
      write(items[i], level + 1);
    }
    new_line(level);
    put("]");
  }
  void write_entries(const Entries& entries, int level) {
    if (entries.empty()) return put("{}");
    std::vector<const std::pair<Value, Value>*> order;
    for (const auto& entry : entries) order.push_back(&entry);
    if (style_.sorted) {
      std::stable_sort(order.begin(), order.end(),
                       [&](const auto* a, const auto* b) { return less(work_, a->first, b->first, "<"); });
    }
    put("{");
    bool first = true;
    for (const auto* entry : order) {
      if (!first) put(style_.item);
      first = false;
      new_line(level + 1);
      const auto plain = scalar(entry->first);
      const std::string* key = text_of(entry->first);
      if (key == nullptr && !plain) {
        work_.refuse("keys must be str, int, float, bool or None, not " + type_name(entry->first));
      }
      write_text(key != nullptr ? *key : *plain);
      put(style_.key);
      write(entry->second, level + 1);
    }
    new_line(level);
    put("}");
  }
  void new_line(int level) {
    if (!style_.indent) return;
    put("\n");
    for (int i = 0; i < level; ++i) put(*style_.indent);
  }
  void write_text(const std::string& text) {
    std::string quoted = "\"";
    for (size_t at = 0; at < text.size();) append_escaped(quoted, next_character(text, at));
    put(quoted + "\"");
  }
  void append_escaped(std::string& to, char32_t c) const {
    static constexpr std::u32string_view kPlain = U"\"\\\n\r\t\b\f";
    static constexpr std::string_view kLetters = "\"\\nrtbf";
    const size_t known = kPlain.find(c);
    if (known != kPlain.npos) {
      to += {'\\', kLetters[known]};
    } else if (c < 0x20 || (style_.ascii && (c >= 0x7F && c < 0x10000))) {
      to += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
    } else if (style_.ascii && c >= 0x10000) {
      const uint32_t rest = static_cast<uint32_t>(c) - 0x10000;
      to += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 | rest >> 10, 0xDC00 | (rest & 0x3FF));
    } else {
      append(to, c);
    }
  }

  Work& work_;
  const JsonStyle& style_;
  std::string out_;
};

}  // namespace

std::string to_json(Work& work, const Value& value, const JsonStyle& style) {
  return JsonWriter(work, style).run(value);
}

}  // namespace limbeck::text::jinja
