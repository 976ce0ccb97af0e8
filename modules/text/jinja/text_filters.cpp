// Filters that make a text.
#include <algorithm>
#include <map>

#include "modules/text/jinja/arguments.h"
#include "modules/text/jinja/filters.h"
#include "modules/text/jinja/methods.h"
#include "modules/text/jinja/python_text.h"

namespace limbeck::text::jinja {
namespace {

// str(), which leaves what `safe` made as it is.
Value soft_text(Work& work, const Value& value) { return value.is<Text>() ? value : text(work, to_text(work, value)); }

using Change = std::string (*)(std::string_view);

template <Change kChange, bool kKeepsMarkup>
Value changed(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Bound none(work, "a filter of a text's case", arguments, {});
  const Value soft = soft_text(work, value);
  work.step(text_of(soft)->size() / 16);
  return text(work, kChange(*text_of(soft)), kKeepsMarkup && is_markup(soft));
}

Value trim(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Bound bound(work, "trim", arguments, {"chars"});
  const Value soft = soft_text(work, value);
  return text(work, std::string(strip(*text_of(soft), Side::kBoth, bound.text(0))), is_markup(soft));
}

Value replace_filter(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Bound bound(work, "replace", arguments, {"old", "new", "count"}, 2);
  const bool all = !bound.given(2) || bound.value(2).is<None>();
  return replaced(work, to_text(work, value), to_text(work, bound.value(0)), to_text(work, bound.value(1)),
                  all ? -1 : bound.integer(2, -1));
}

Value string_filter(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  const Bound none(evaluator.work(), "string", arguments, {});
  return soft_text(evaluator.work(), value);
}

Value safe(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  const Bound none(evaluator.work(), "safe", arguments, {});
  return text(evaluator.work(), to_text(evaluator.work(), value), true);
}

Value escape_filter(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Bound none(work, "escape", arguments, {});
  if (is_markup(value)) return value;
  const std::string plain = to_text(work, value);
  work.make(plain.size() * 5);
  return text(work, escaped(plain), true);
}

Value indent(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Bound bound(work, "indent", arguments, {"width", "first", "blank"});
  if (value.is<Undefined>()) refuse_undefined(work, value);
  const std::string* string = text_of(value);
  if (string == nullptr) work.refuse("indent wanted a text, got a " + type_name(value));
  if (is_markup(value)) work.refuse_unsupported("indent of what `safe` or `escape` made");
  const std::string* given = bound.given(0) ? text_of(bound.value(0)) : nullptr;
  const int64_t width = given == nullptr ? std::clamp<int64_t>(bound.integer(0, 4), 0, 1 << 20) : 0;
  const std::string space = given != nullptr ? *given : std::string(static_cast<size_t>(width), ' ');
  std::string out = bound.flag(1, false) ? space : "";
  bool first = true;
  for (const std::string& line : split_lines(*string + "\n", false)) {
    work.make(space.size() + line.size() + 1);
    if (!first) out += "\n";
    if (!first && (!line.empty() || bound.flag(2, false))) out += space;
    first = false;
    out += line;
  }
  return text(work, std::move(out));
}

Value join(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Bound bound(work, "join", arguments, {"d", "attribute"});
  const std::string between = bound.given(0) ? to_text(work, bound.value(0)) : "";
  const bool has_path = bound.given(1) && !bound.value(1).is<None>();
  std::string out;
  bool first = true;
  const Next next = iterate(work, value);
  while (auto item = next()) {
    const std::string part = to_text(work, has_path ? sort_key(work, *item, bound.value(1), true) : *item);
    work.make(between.size() + part.size());
    if (!first) out += between;
    first = false;
    out += part;
  }
  return text(work, std::move(out));
}

}  // namespace

Filter find_text_filter(const std::string& name) {
  static const std::map<std::string, Filter> kFilters = {
      {"capitalize", changed<capitalize, true>},
      {"e", escape_filter},
      {"escape", escape_filter},
      {"indent", indent},
      {"join", join},
      {"lower", changed<lower, true>},
      {"replace", replace_filter},
      {"safe", safe},
      {"string", string_filter},
      {"title", changed<title_of_words, false>},
      {"trim", trim},
      {"upper", changed<upper, true>},
  };
  const auto found = kFilters.find(name);
  return found == kFilters.end() ? nullptr : found->second;
}

}  // namespace limbeck::text::jinja
