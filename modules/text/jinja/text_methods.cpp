// The methods of a str.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "modules/text/characters/unicode.h"
#include "modules/text/jinja/arguments.h"
#include "modules/text/jinja/format_text.h"
#include "modules/text/jinja/methods.h"
#include "modules/text/jinja/python_text.h"

namespace limbeck::text::jinja {
namespace {

Value list_of(Work& work, std::vector<std::string> parts, SequenceKind kind = SequenceKind::kList) {
  Items items;
  for (std::string& part : parts) items.push_back(text(work, std::move(part)));
  return sequence(work, std::move(items), kind);
}

Value split_method(Work& work, const std::string& self, bool right, const Arguments& arguments) {
  const Bound bound(work, right ? "str.rsplit" : "str.split", arguments, {"sep", "maxsplit"});
  const auto separator = bound.text(0);
  const int64_t most = bound.integer(1, -1);
  if (!separator) return list_of(work, right ? split_from_right(self, most) : split(self, most));
  if (separator->empty()) work.refuse("str.split: an empty separator");
  return list_of(work, right ? split_at_from_right(self, *separator, most) : split_at(self, *separator, most));
}

// The part of a text that start and end name, in characters; none when nothing can be found there, not even nothing.
std::optional<std::string> part_of(Work& work, const std::string& self, const Bound& bound, int64_t& start) {
  const std::u32string all = characters(self);
  const auto size = static_cast<int64_t>(all.size());
  const auto at = [&](size_t index, int64_t fallback) {
    if (!bound.given(index) || bound.value(index).is<None>()) return fallback;
    const int64_t given = bound.integer(index, 0);
    return std::max<int64_t>(given < 0 ? given + size : given, 0);
  };
  start = at(1, 0);
  const int64_t end = std::min(at(2, size), size);
  work.step(self.size() / 16);
  if (start > end) return std::nullopt;
  return from_characters(std::u32string_view(all).substr(static_cast<size_t>(start), static_cast<size_t>(end - start)));
}

Value affix_method(Work& work, const std::string& self, bool front, const Arguments& arguments) {
  const char* what = front ? "str.startswith" : "str.endswith";
  if (!arguments.named.empty()) work.refuse(std::string(what) + "() takes no keyword arguments");
  const Bound bound(work, what, arguments, {"prefix", "start", "end"}, 1);
  int64_t start = 0;
  const bool whole = !bound.given(1) && !bound.given(2);
  const auto part = whole ? std::optional(self) : part_of(work, self, bound, start);
  const auto has = [&](const Value& affix) {
    const std::string* with = text_of(affix);
    if (with == nullptr) work.refuse(fmt::format("{}: the argument is a {}, wanted a str", what, type_name(affix)));
    return part && (front ? part->starts_with(*with) : part->ends_with(*with));
  };
  const Value affix = bound.value(0);
  const auto* items = affix.as<Sequence>();
  if (items == nullptr || (*items)->kind != SequenceKind::kTuple) return Value(Value::Held(has(affix)));
  return Value(Value::Held(std::any_of((*items)->items.begin(), (*items)->items.end(), has)));
}

int64_t count_of(const std::string& text, const std::string& sub) {
  if (sub.empty()) return static_cast<int64_t>(count_characters(text)) + 1;
  int64_t count = 0;
  for (size_t at = text.find(sub); at != text.npos; at = text.find(sub, at + sub.size())) ++count;
  return count;
}

Value find_method(Work& work, const std::string& self, const std::string& name, const Arguments& arguments) {
  if (!arguments.named.empty()) work.refuse("str." + name + "() takes no keyword arguments");
  const Bound bound(work, "str." + name, arguments, {"sub", "start", "end"}, 1);
  int64_t start = 0;
  const auto part = part_of(work, self, bound, start);
  const std::string sub = bound.required_text(0);
  if (name == "count") return Value(Value::Held(part ? count_of(*part, sub) : int64_t{0}));
  const size_t found = !part ? self.npos : name[0] == 'r' ? part->rfind(sub) : part->find(sub);
  if (found == self.npos) {
    if (name.ends_with("index")) work.refuse("substring not found");
    return Value(Value::Held(int64_t{-1}));
  }
  return Value(Value::Held(start + static_cast<int64_t>(count_characters(std::string_view(*part).substr(0, found)))));
}

Value join_method(Work& work, const std::string& self, const Arguments& arguments) {
  if (!arguments.named.empty()) work.refuse("str.join() takes no keyword arguments");
  const Bound bound(work, "str.join", arguments, {"iterable"}, 1);
  std::string out;
  bool first = true;
  const Next next = iterate(work, bound.value(0));
  while (auto item = next()) {
    const std::string* part = text_of(*item);
    if (part == nullptr) work.refuse("str.join: an item is a " + type_name(*item) + ", wanted a str");
    if (is_markup(*item)) work.refuse_unsupported("str.join of what `safe` or `escape` made");
    work.make(self.size() + part->size());
    if (!first) out += self;
    first = false;
    out += *part;
  }
  return text(work, std::move(out));
}

Value replace_method(Work& work, const std::string& self, const Arguments& arguments) {
  if (!arguments.named.empty()) work.refuse("str.replace() takes no keyword arguments");
  const Bound bound(work, "str.replace", arguments, {"old", "new", "count"}, 2);
  return replaced(work, self, bound.required_text(0), bound.required_text(1), bound.integer(2, -1));
}

Value pad_method(Work& work, const std::string& self, const std::string& name, const Arguments& arguments) {
  const Bound bound(work, "str." + name, arguments, {"width", "fillchar"}, 1);
  const int64_t width = bound.integer(0, 0), size = static_cast<int64_t>(count_characters(self));
  const std::string fill = name == "zfill" ? "0" : bound.text(1).value_or(" ");
  if (count_characters(fill) != 1) work.refuse("str." + name + ": the fill is no single character");
  if (width <= size) return text(work, self);
  const int64_t missing = width - size;
  if (missing > static_cast<int64_t>(work.limits().made_bytes))
    work.refuse("str." + name + ": a width beyond all limits");
  work.make(static_cast<size_t>(missing) * fill.size());
  const auto filled = [&](int64_t count) {
    std::string out;
    for (int64_t i = 0; i < count; ++i) out += fill;
    return out;
  };
  if (name == "zfill") {
    const bool sign = !self.empty() && (self[0] == '-' || self[0] == '+');
    return text(work, (sign ? self.substr(0, 1) : "") + filled(missing) + self.substr(sign ? 1 : 0));
  }
  const int64_t left = name == "rjust" ? missing : name == "ljust" ? 0 : missing / 2 + (missing & width & 1);
  return text(work, filled(left) + self + filled(missing - left));
}

Value partition_method(Work& work, const std::string& self, bool right, const Arguments& arguments) {
  const Bound bound(work, "str.partition", arguments, {"sep"}, 1);
  const std::string separator = bound.required_text(0);
  if (separator.empty()) work.refuse("str.partition: an empty separator");
  const size_t at = right ? self.rfind(separator) : self.find(separator);
  std::vector<std::string> parts = {self, "", ""};
  if (at != self.npos)
    parts = {self.substr(0, at), separator, self.substr(at + separator.size())};
  else if (right)
    parts = {"", "", self};
  return list_of(work, std::move(parts), SequenceKind::kTuple);
}

Value is_method(Work& work, const std::string& self, const std::string& name, const Arguments& arguments) {
  const Bound none(work, "str." + name, arguments, {});
  const std::u32string all = characters(self);
  const auto every = [&](auto is) {
    return Value(Value::Held(!all.empty() && std::all_of(all.begin(), all.end(), is)));
  };
  if (name == "isspace") return every(is_space);
  if (name == "isalpha") return every(is_letter);
  if (std::any_of(all.begin(), all.end(), [](char32_t c) { return c >= 0x80; }))
    work.refuse_unsupported("str." + name + " of a text beyond ASCII");
  const auto digit = [](char32_t c) { return c >= U'0' && c <= U'9'; };
  if (name == "isdigit") return every(digit);
  if (name == "isalnum") return every([&](char32_t c) { return digit(c) || is_letter(c); });
  return Value(Value::Held(has_case(work, self, name == "isupper")));
}

Value strip_method(Work& work, const std::string& self, const std::string& name, const Arguments& arguments) {
  if (!arguments.named.empty()) work.refuse("str." + name + "() takes no keyword arguments");
  const Bound bound(work, "str." + name, arguments, {"chars"});
  const Side side = name[0] == 'l' ? Side::kLeft : name[0] == 'r' ? Side::kRight : Side::kBoth;
  return text(work, std::string(strip(self, side, bound.text(0))));
}

Value remove_method(Work& work, const std::string& self, bool front, const Arguments& arguments) {
  const Bound bound(work, "str.removeprefix", arguments, {"prefix"}, 1);
  const std::string affix = bound.required_text(0);
  if (front && self.starts_with(affix)) return text(work, self.substr(affix.size()));
  if (!front && self.ends_with(affix)) return text(work, self.substr(0, self.size() - affix.size()));
  return text(work, self);
}

}  // namespace

bool has_case(Work& work, const std::string& self, bool upper) {
  if (std::any_of(self.begin(), self.end(), [](char c) { return static_cast<unsigned char>(c) >= 0x80; }))
    work.refuse_unsupported("the case of a text beyond ASCII");
  const auto is_wanted = [&](char c) { return upper ? c >= 'A' && c <= 'Z' : c >= 'a' && c <= 'z'; };
  const auto is_other = [&](char c) { return upper ? c >= 'a' && c <= 'z' : c >= 'A' && c <= 'Z'; };
  return std::any_of(self.begin(), self.end(), is_wanted) && std::none_of(self.begin(), self.end(), is_other);
}

Value replaced(Work& work, const std::string& self, const std::string& old, const std::string& with, int64_t most) {
  auto count = static_cast<size_t>(count_of(self, old));
  if (most >= 0) count = std::min(count, static_cast<size_t>(most));
  work.make(self.size());
  if (!with.empty() && count > work.limits().made_bytes / with.size()) work.refuse("a replacement beyond all limits");
  work.make(count * with.size());
  return text(work, replace(self, old, with, most));
}

Value call_text_method(Work& work, const Value& of, const std::string& name, const Arguments& arguments) {
  const std::string& self = *text_of(of);
  work.step(self.size() / 16);
  work.make(self.size());
  using Change = std::string (*)(std::string_view);
  static const std::map<std::string, Change> kChanges = {
      {"upper", upper}, {"lower", lower}, {"title", title}, {"capitalize", capitalize}};
  if (const auto found = kChanges.find(name); found != kChanges.end()) {
    const Bound none(work, "str." + name, arguments, {});
    return text(work, found->second(self));
  }
  if (name == "strip" || name == "lstrip" || name == "rstrip") return strip_method(work, self, name, arguments);
  if (name == "split" || name == "rsplit") return split_method(work, self, name == "rsplit", arguments);
  if (name == "splitlines") {
    const Bound bound(work, "str.splitlines", arguments, {"keepends"});
    return list_of(work, split_lines(self, bound.flag(0, false)));
  }
  if (name == "replace") return replace_method(work, self, arguments);
  if (name == "startswith" || name == "endswith") return affix_method(work, self, name == "startswith", arguments);
  if (name == "join") return join_method(work, self, arguments);
  if (name == "format") return text(work, format_braces(work, self, arguments));
  if (name == "partition" || name == "rpartition") return partition_method(work, self, name[0] == 'r', arguments);
  if (name == "removeprefix" || name == "removesuffix") return remove_method(work, self, name[6] == 'p', arguments);
  if (name == "center" || name == "ljust" || name == "rjust" || name == "zfill")
    return pad_method(work, self, name, arguments);
  if (name.starts_with("is")) return is_method(work, self, name, arguments);
  return find_method(work, self, name, arguments);
}

}  // namespace limbeck::text::jinja
